program example
    use, intrinsic :: iso_c_binding, only: c_float
    use cmm, only: cmm_layer, CMM_RELU
    implicit none
    ! One tree of depth 1: three neurons of width 2. Two tokens. The rows of C are the columns of Fortran.
    real(c_float), target :: w_in(2, 3, 1), w_out(2, 3, 1), x(2, 2), y(2, 2)
    type(cmm_layer) :: layer
    w_in = reshape([1., 0., 0., 1., 1., 1.], shape(w_in))
    w_out = reshape([1., 2., 3., 4., 5., 6.], shape(w_out))
    x = reshape([1., 2., -1., 3.], shape(x))
    call layer%create(w_in, w_out, activation=CMM_RELU)
    call layer%forward(x, y) ! with error=e it would set e%status and e%message; without, an error ends the program
    print '(*(i0, :, " "))', int(y)
end program
