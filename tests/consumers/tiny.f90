! The same program as tiny.c, in Fortran 2003.
program tiny
    use, intrinsic :: iso_c_binding
    implicit none

    type, bind(C) :: cmm_fff
        integer(c_int32_t) :: size, dtype, activation, tie, depth, reserved
        integer(c_int64_t) :: trees, d_in, d_out
        type(c_ptr) :: w_in, bias, w_out
        integer(c_int64_t) :: ld_in, ld_out
    end type

    interface
        integer(c_int32_t) function cmm_fff_forward(layer, run, batch, x, y, nodes, logits) bind(C)
            import
            type(cmm_fff), intent(in) :: layer
            type(c_ptr), value :: run, x, y, nodes, logits
            integer(c_int64_t), value :: batch
        end function
    end interface

    integer(c_int32_t), parameter :: relu = 2, error_batch = 50
    real(c_float), target :: w_in(2, 3), w_out(2, 3), x(2, 2), y(2, 2), logits(2, 2)
    integer(c_int32_t), target :: nodes(2, 2)
    integer(c_int32_t) :: status
    type(cmm_fff) :: layer

    ! The rows of C are the columns of Fortran.
    w_in = reshape([1., 0., 0., 1., 1., 1.], [2, 3])
    w_out = reshape([1., 2., 3., 4., 5., 6.], [2, 3])
    x = reshape([1., 2., -1., 3.], [2, 2])
    layer = cmm_fff(size=int(c_sizeof(layer), c_int32_t), dtype=0, activation=relu, tie=0, depth=1, reserved=0, &
                    trees=1, d_in=2, d_out=2, w_in=c_loc(w_in), bias=c_null_ptr, w_out=c_loc(w_out), ld_in=0, ld_out=0)
    status = cmm_fff_forward(layer, c_null_ptr, 2_c_int64_t, c_loc(x), c_loc(y), c_loc(nodes), c_loc(logits))
    if (status /= 0) then
        print *, 'status', status
        error stop 1
    end if
    if (any(abs(y - reshape([16., 20., 9., 12.], [2, 2])) > 0) .or. any(nodes /= reshape([0, 2, 0, 1], [2, 2]))) then
        print *, 'wrong: y =', y
        error stop 1
    end if
    status = cmm_fff_forward(layer, c_null_ptr, -1_c_int64_t, c_loc(x), c_loc(y), c_null_ptr, c_null_ptr)
    if (status /= error_batch) then
        print *, 'a wrong call was not refused:', status
        error stop 1
    end if
    print '(a)', 'libcmm from Fortran: good'
end program
