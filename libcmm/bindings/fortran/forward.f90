! Runs the layers in the files that are named, and prints what each token takes and gives: nodes, logits and outputs, the
! numbers as their bits. The format of the files is in tests/support/layer_files.py.
program forward
    use, intrinsic :: iso_c_binding
    use cmm
    implicit none

    character(4096) :: name
    integer :: argument

    print '(2a)', 'libcmm ', cmm_version_text()
    do argument = 1, command_argument_count()
        call get_command_argument(argument, name)
        call run(trim(name))
    end do

contains

    subroutine run(name)
        character(*), intent(in) :: name
        integer(c_int64_t) :: sizes(8)
        real(c_float), allocatable, target :: w_in(:, :, :), w_out(:, :, :), bias(:, :), x(:, :), y(:, :), logits(:, :, :)
        real(c_double), allocatable, target :: y2(:, :), logits2(:, :, :)
        real(c_double), allocatable, target :: w_in2(:, :, :), w_out2(:, :, :), bias2(:, :), x2(:, :)
        integer(c_int32_t), allocatable, target :: path(:, :, :), same(:, :, :)
        type(cmm_layer) :: layer
        type(cmm_error) :: error
        integer(c_int32_t) :: how(2)
        integer :: unit, nodes, token
        open (newunit=unit, file=name, access='stream', form='unformatted', status='old', action='read')
        read (unit) sizes
        nodes = 2*2**int(sizes(2)) - 1
        how = int(sizes(6:7), c_int32_t)
        allocate (w_in(sizes(3), nodes, sizes(1)), w_out(sizes(4), nodes, sizes(1)), x(sizes(3), sizes(5)))
        read (unit) w_in, w_out
        if (sizes(8) == 1) then ! else it is not allocated, so that it is absent as an argument
            allocate (bias(nodes, sizes(1)))
            read (unit) bias
            bias2 = bias
        end if
        read (unit) x
        close (unit)
        allocate (y(sizes(4), sizes(5)), y2(sizes(4), sizes(5)))
        allocate (path(sizes(2) + 1, sizes(1), sizes(5)), logits(sizes(2) + 1, sizes(1), sizes(5)))
        allocate (same(sizes(2) + 1, sizes(1), sizes(5)), logits2(sizes(2) + 1, sizes(1), sizes(5)))

        call layer%create(w_in, w_out, bias, activation=how(1), tie=how(2))
        call layer%forward(x, y, path, logits)
        call layer%forward(x, path=same, threads=1)
        if (any(same /= path)) error stop 'the path alone is another'
        do token = 1, int(sizes(5))
            print '(*(g0))', 'float32 token ', token - 1, ' nodes', words(path(:, :, token)), ' logits', &
                bits(transfer(logits(:, :, token), [1_c_int32_t])), ' y', bits(transfer(y(:, token), [1_c_int32_t]))
        end do

        w_in2 = w_in
        w_out2 = w_out
        x2 = x
        call layer%create(w_in2, w_out2, bias2, activation=how(1), tie=how(2))
        call layer%forward(x2, y2, path, logits2)
        do token = 1, int(sizes(5))
            print '(*(g0))', 'float64 token ', token - 1, ' nodes', words(path(:, :, token)), ' logits', &
                bits2(transfer(logits2(:, :, token), [1_c_int64_t])), ' y', bits2(transfer(y2(:, token), [1_c_int64_t]))
        end do

        ! What is refused, and how that is said.
        call layer%forward(x, y, error=error)
        print '(2a)', 'kind: ', error%message
        call layer%create(w_in, w_out, bias, tie=7, error=error)
        print '(2a)', 'tie 7: ', error%message
        call layer%forward(x, y, error=error)
        print '(2a)', 'no layer: ', error%message
        call layer%create(w_in, w_out, bias)
        call layer%forward(x, y, threads=-1, error=error)
        print '(2a)', 'threads -1: ', error%message
        deallocate (y)
        allocate (y(sizes(4), sizes(5) + 1))
        call layer%forward(x, y, error=error)
        print '(2a)', 'y: ', error%message
        call layer%create(reshape(w_in, [int(sizes(3)), nodes + 1, int(sizes(1))], [0.]), w_out, error=error)
        print '(2a)', 'w_in: ', error%message
    end subroutine

    function words(path) result(said)
        integer(c_int32_t), intent(in) :: path(:, :)
        character(:), allocatable :: said
        character(12*size(path)) :: room
        write (room, '(*(:, " ", i0))') path
        said = trim(room)
    end function

    function bits(numbers) result(said)
        integer(c_int32_t), intent(in) :: numbers(:)
        character(9*size(numbers)) :: said
        write (said, '(*(:, " ", z8.8))') numbers
        said = lower(said)
    end function

    function bits2(numbers) result(said)
        integer(c_int64_t), intent(in) :: numbers(:)
        character(17*size(numbers)) :: said
        write (said, '(*(:, " ", z16.16))') numbers
        said = lower(said)
    end function

    pure function lower(word) result(said)
        character(*), intent(in) :: word
        character(len(word)) :: said
        integer :: k
        said = word
        do k = 1, len(word)
            if (word(k:k) >= 'A' .and. word(k:k) <= 'F') said(k:k) = achar(iachar(word(k:k)) + 32)
        end do
    end function
end program
