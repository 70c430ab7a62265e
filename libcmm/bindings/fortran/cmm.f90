! Fast feedforward layers on the CPU, by libcmm. The rows of C are the columns of Fortran:
!
!     w_in(d_in, nodes, trees)   w_out(d_out, nodes, trees)   bias(nodes, trees)   x(d_in, batch)   y(d_out, batch)
!     path(depth + 1, trees, batch), logits alike
!
! Nodes count from 0, as everywhere in libcmm. Weights are contiguous, and not copied; of x, y, path and logits that are parts
! of arrays the compiler makes copies. A call that was refused has written nothing but its error.
module cmm
    use, intrinsic :: iso_c_binding
    use cmm_abi
    implicit none
    private

    public :: cmm_layer, cmm_error, cmm_version_text
    public :: CMM_GELU, CMM_GELU_TANH, CMM_RELU, CMM_SILU, CMM_IDENTITY, CMM_TIE_LEFT, CMM_TIE_RIGHT, CMM_OK

    ! What a call reports: CMM_OK, another status of libcmm, or -1 for an array of another shape. And what that means.
    type :: cmm_error
        integer(c_int32_t) :: status = CMM_OK
        character(:), allocatable :: message
    end type

    ! A layer on arrays that are targets, and live as long as it. Many threads may use it at once.
    type :: cmm_layer
        private
        type(cmm_fff) :: raw
    contains
        procedure, private :: create_float, create_double
        generic, public :: create => create_float, create_double
        procedure, private :: forward_float, forward_double
        generic, public :: forward => forward_float, forward_double
    end type

    integer(c_int32_t), parameter :: wrong_shape = -1
    integer, parameter :: wide = c_int64_t ! of extents

contains

    ! The layer of these weights; it says itself how large it is. activation: CMM_GELU; tie: CMM_TIE_LEFT.
    subroutine create_float(self, w_in, w_out, bias, activation, tie, error)
        class(cmm_layer), intent(out) :: self
        real(c_float), intent(in), target :: w_in(:, :, :), w_out(:, :, :)
        real(c_float), intent(in), target, optional :: bias(:, :)
        integer(c_int32_t), intent(in), optional :: activation, tie
        type(cmm_error), intent(out), optional :: error
        type(cmm_error) :: problem
        self%raw%dtype = CMM_F32
        ! Of parts of arrays a contiguous argument would be a copy that goes when this returns.
        if (.not. is_contiguous(w_in)) call refuse('w_in should be contiguous', problem)
        if (.not. is_contiguous(w_out)) call refuse('w_out should be contiguous', problem)
        self%raw%w_in = c_loc(w_in)
        self%raw%w_out = c_loc(w_out)
        if (present(bias)) then
            if (.not. is_contiguous(bias)) call refuse('bias should be contiguous', problem)
            self%raw%bias = c_loc(bias)
            call describe(self%raw, shape(w_in, wide), shape(w_out, wide), problem, shape(bias, wide), activation, tie)
        else
            call describe(self%raw, shape(w_in, wide), shape(w_out, wide), problem, activation=activation, tie=tie)
        end if
        if (problem%status /= CMM_OK) self%raw = cmm_fff() ! which is no layer
        call report(problem, error)
    end subroutine

    subroutine create_double(self, w_in, w_out, bias, activation, tie, error)
        class(cmm_layer), intent(out) :: self
        real(c_double), intent(in), target :: w_in(:, :, :), w_out(:, :, :)
        real(c_double), intent(in), target, optional :: bias(:, :)
        integer(c_int32_t), intent(in), optional :: activation, tie
        type(cmm_error), intent(out), optional :: error
        type(cmm_error) :: problem
        self%raw%dtype = CMM_F64
        ! Of parts of arrays a contiguous argument would be a copy that goes when this returns.
        if (.not. is_contiguous(w_in)) call refuse('w_in should be contiguous', problem)
        if (.not. is_contiguous(w_out)) call refuse('w_out should be contiguous', problem)
        self%raw%w_in = c_loc(w_in)
        self%raw%w_out = c_loc(w_out)
        if (present(bias)) then
            if (.not. is_contiguous(bias)) call refuse('bias should be contiguous', problem)
            self%raw%bias = c_loc(bias)
            call describe(self%raw, shape(w_in, wide), shape(w_out, wide), problem, shape(bias, wide), activation, tie)
        else
            call describe(self%raw, shape(w_in, wide), shape(w_out, wide), problem, activation=activation, tie=tie)
        end if
        if (problem%status /= CMM_OK) self%raw = cmm_fff() ! which is no layer
        call report(problem, error)
    end subroutine

    ! y = the layer applied to x, and the path where it is asked for. Without y, the path alone. threads: 0, all cores.
    subroutine forward_float(self, x, y, path, logits, threads, error)
        class(cmm_layer), intent(in) :: self
        real(c_float), intent(in), contiguous, target :: x(:, :)
        real(c_float), intent(inout), contiguous, target, optional :: y(:, :), logits(:, :, :)
        integer(c_int32_t), intent(inout), contiguous, target, optional :: path(:, :, :)
        integer(c_int32_t), intent(in), optional :: threads
        type(cmm_error), intent(out), optional :: error
        type(cmm_error) :: problem
        type(c_ptr) :: to, logits_to
        to = c_null_ptr
        logits_to = c_null_ptr
        call check_type(self%raw, CMM_F32, problem)
        call check('x', shape(x, wide), [self%raw%d_in, size(x, 2, wide)], problem)
        if (present(y)) then
            call check('y', shape(y, wide), [self%raw%d_out, size(x, 2, wide)], problem)
            to = c_loc(y)
        end if
        if (present(logits)) then
            call check('logits', shape(logits, wide), path_shape(self%raw, size(x, 2, wide)), problem)
            logits_to = c_loc(logits)
        end if
        call forward(self%raw, size(x, 2, wide), c_loc(x), present(y), to, path, logits_to, threads, problem)
        call report(problem, error)
    end subroutine

    subroutine forward_double(self, x, y, path, logits, threads, error)
        class(cmm_layer), intent(in) :: self
        real(c_double), intent(in), contiguous, target :: x(:, :)
        real(c_double), intent(inout), contiguous, target, optional :: y(:, :), logits(:, :, :)
        integer(c_int32_t), intent(inout), contiguous, target, optional :: path(:, :, :)
        integer(c_int32_t), intent(in), optional :: threads
        type(cmm_error), intent(out), optional :: error
        type(cmm_error) :: problem
        type(c_ptr) :: to, logits_to
        to = c_null_ptr
        logits_to = c_null_ptr
        call check_type(self%raw, CMM_F64, problem)
        call check('x', shape(x, wide), [self%raw%d_in, size(x, 2, wide)], problem)
        if (present(y)) then
            call check('y', shape(y, wide), [self%raw%d_out, size(x, 2, wide)], problem)
            to = c_loc(y)
        end if
        if (present(logits)) then
            call check('logits', shape(logits, wide), path_shape(self%raw, size(x, 2, wide)), problem)
            logits_to = c_loc(logits)
        end if
        call forward(self%raw, size(x, 2, wide), c_loc(x), present(y), to, path, logits_to, threads, problem)
        call report(problem, error)
    end subroutine

    ! The version of the library that is running.
    function cmm_version_text() result(said)
        character(:), allocatable :: said
        said = text(cmm_version())
    end function

    ! ---- for both types ----

    subroutine describe(raw, w_in, w_out, problem, bias, activation, tie)
        type(cmm_fff), intent(inout), target :: raw
        integer(wide), intent(in) :: w_in(3), w_out(3)
        type(cmm_error), intent(inout) :: problem
        integer(wide), intent(in), optional :: bias(2)
        integer(c_int32_t), intent(in), optional :: activation, tie
        integer(c_int64_t), target :: bytes
        raw%d_in = w_in(1)
        raw%d_out = w_out(1)
        raw%trees = w_in(3)
        ! nodes = 2^(depth+1) - 1
        raw%depth = int(bit_size(w_in) - leadz(w_in(2)) - 1, c_int32_t)
        if (present(activation)) raw%activation = activation
        if (present(tie)) raw%tie = tie
        if (popcnt(w_in(2)) /= raw%depth + 1) then
            call refuse('w_in has '//number(w_in(2))//' nodes; it should have 2**(depth+1) - 1', problem)
        end if
        call check('w_out', w_out, [w_out(1), w_in(2), w_in(3)], problem)
        if (present(bias)) call check('bias', bias, [w_in(2), w_in(3)], problem)
        if (problem%status == CMM_OK) call check_status(cmm_fff_pack_size(c_loc(raw), c_loc(bytes)), problem)
    end subroutine

    pure function path_shape(raw, batch) result(extents)
        type(cmm_fff), intent(in) :: raw
        integer(wide), intent(in) :: batch
        integer(wide) :: extents(3)
        extents = [raw%depth + 1_wide, raw%trees, batch]
    end function

    subroutine forward(raw, batch, x, has_y, y, path, logits, threads, problem)
        type(cmm_fff), intent(in), target :: raw
        integer(wide), intent(in) :: batch
        type(c_ptr), intent(in) :: x, y, logits
        logical, intent(in) :: has_y
        integer(c_int32_t), intent(inout), contiguous, target, optional :: path(:, :, :)
        integer(c_int32_t), intent(in), optional :: threads
        type(cmm_error), intent(inout) :: problem
        type(cmm_run), target :: run
        type(c_ptr) :: nodes
        nodes = c_null_ptr
        if (present(path)) then
            call check('path', shape(path, wide), path_shape(raw, batch), problem)
            nodes = c_loc(path)
        end if
        if (present(threads)) run%threads = threads
        if (problem%status /= CMM_OK) return
        if (has_y) then
            call check_status(cmm_fff_forward(c_loc(raw), c_loc(run), batch, x, y, nodes, logits), problem)
        else
            call check_status(cmm_cmm_forward(c_loc(raw), c_loc(run), batch, x, nodes, logits), problem)
        end if
    end subroutine

    ! ---- errors: the first counts ----

    subroutine check(name, is, should, problem)
        character(*), intent(in) :: name
        integer(wide), intent(in) :: is(:), should(:)
        type(cmm_error), intent(inout) :: problem
        if (any(is /= should)) then
            call refuse(name//' has the shape '//numbers(is)//'; it should have '//numbers(should), problem)
        end if
    end subroutine

    subroutine check_type(raw, dtype, problem)
        type(cmm_fff), intent(in) :: raw
        integer(c_int32_t), intent(in) :: dtype
        type(cmm_error), intent(inout) :: problem
        if (.not. c_associated(raw%w_in)) call refuse('the layer was not created, or that was refused', problem)
        if (raw%dtype /= dtype) call refuse('x has another kind than the weights of the layer', problem)
    end subroutine

    subroutine check_status(status, problem)
        integer(c_int32_t), intent(in) :: status
        type(cmm_error), intent(inout) :: problem
        if (status == CMM_OK .or. problem%status /= CMM_OK) return
        problem%message = text(cmm_status_name(status))//': '//text(cmm_status_message(status))
        problem%status = status
    end subroutine

    subroutine refuse(message, problem)
        character(*), intent(in) :: message
        type(cmm_error), intent(inout) :: problem
        if (problem%status /= CMM_OK) return
        problem%status = wrong_shape
        problem%message = message
    end subroutine

    ! To the caller, who may not have asked; then it ends the program.
    subroutine report(problem, error)
        type(cmm_error), intent(in) :: problem
        type(cmm_error), intent(out), optional :: error
        if (present(error)) then
            error = problem
        else if (problem%status /= CMM_OK) then
            error stop problem%message
        end if
    end subroutine

    function number(value) result(said)
        integer(wide), intent(in) :: value
        character(:), allocatable :: said
        character(20) :: room
        write (room, '(i0)') value
        said = trim(room)
    end function

    function numbers(values) result(said)
        integer(wide), intent(in) :: values(:)
        character(:), allocatable :: said
        integer :: k
        said = '('//number(values(1))
        do k = 2, size(values)
            said = said//', '//number(values(k))
        end do
        said = said//')'
    end function

    function text(string) result(said)
        type(c_ptr), intent(in) :: string
        character(:), allocatable :: said
        character(kind=c_char), pointer :: from(:)
        integer :: length
        call c_f_pointer(string, from, [4096])
        length = 0
        said = ''
        do while (from(length + 1) /= c_null_char)
            length = length + 1
            said = said//from(length)
        end do
    end function
end module
