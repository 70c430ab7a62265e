! Made by libcmm/bindings/generate.py of libcmm/abi.txt: what libcmm exports.
module cmm_abi
    use, intrinsic :: iso_c_binding
    implicit none
    public

    integer(c_int32_t), parameter :: CMM_OK = 0
    integer(c_int32_t), parameter :: CMM_ERROR_LAYER_NULL = 10
    integer(c_int32_t), parameter :: CMM_ERROR_LAYER_SIZE = 11
    integer(c_int32_t), parameter :: CMM_ERROR_DTYPE = 12
    integer(c_int32_t), parameter :: CMM_ERROR_ACTIVATION = 13
    integer(c_int32_t), parameter :: CMM_ERROR_TIE = 14
    integer(c_int32_t), parameter :: CMM_ERROR_TREES = 15
    integer(c_int32_t), parameter :: CMM_ERROR_DEPTH = 16
    integer(c_int32_t), parameter :: CMM_ERROR_NEURONS = 17
    integer(c_int32_t), parameter :: CMM_ERROR_D_IN = 18
    integer(c_int32_t), parameter :: CMM_ERROR_D_OUT = 19
    integer(c_int32_t), parameter :: CMM_ERROR_LD_IN = 20
    integer(c_int32_t), parameter :: CMM_ERROR_LD_OUT = 21
    integer(c_int32_t), parameter :: CMM_ERROR_LAYER_TOO_LARGE = 22
    integer(c_int32_t), parameter :: CMM_ERROR_RESERVED = 23
    integer(c_int32_t), parameter :: CMM_ERROR_WEIGHT_DTYPE = 24
    integer(c_int32_t), parameter :: CMM_ERROR_SCALE = 25
    integer(c_int32_t), parameter :: CMM_ERROR_EXACT = 26
    integer(c_int32_t), parameter :: CMM_ERROR_LD_EXACT = 27
    integer(c_int32_t), parameter :: CMM_ERROR_RUN_SIZE = 30
    integer(c_int32_t), parameter :: CMM_ERROR_THREADS = 31
    integer(c_int32_t), parameter :: CMM_ERROR_LEVEL = 32
    integer(c_int32_t), parameter :: CMM_ERROR_LEVEL_UNUSABLE = 33
    integer(c_int32_t), parameter :: CMM_ERROR_ISA = 34
    integer(c_int32_t), parameter :: CMM_ERROR_ISA_UNUSABLE = 35
    integer(c_int32_t), parameter :: CMM_ERROR_METHOD = 36
    integer(c_int32_t), parameter :: CMM_ERROR_BLAS_MISSING = 37
    integer(c_int32_t), parameter :: CMM_ERROR_BLAS_SIZE = 38
    integer(c_int32_t), parameter :: CMM_ERROR_BLAS_INCOMPLETE = 39
    integer(c_int32_t), parameter :: CMM_ERROR_LEVEL_WEIGHT_DTYPE = 40
    integer(c_int32_t), parameter :: CMM_ERROR_PATH_TWICE = 41
    integer(c_int32_t), parameter :: CMM_ERROR_PATH_DENSE = 42
    integer(c_int32_t), parameter :: CMM_ERROR_BATCH = 50
    integer(c_int32_t), parameter :: CMM_ERROR_BATCH_TOO_LARGE = 51
    integer(c_int32_t), parameter :: CMM_ERROR_W_IN_NULL = 52
    integer(c_int32_t), parameter :: CMM_ERROR_W_OUT_NULL = 53
    integer(c_int32_t), parameter :: CMM_ERROR_X_NULL = 54
    integer(c_int32_t), parameter :: CMM_ERROR_Y_NULL = 55
    integer(c_int32_t), parameter :: CMM_ERROR_PATH_NULL = 56
    integer(c_int32_t), parameter :: CMM_ERROR_W_IN_ALIGN = 57
    integer(c_int32_t), parameter :: CMM_ERROR_BIAS_ALIGN = 58
    integer(c_int32_t), parameter :: CMM_ERROR_W_OUT_ALIGN = 59
    integer(c_int32_t), parameter :: CMM_ERROR_X_ALIGN = 60
    integer(c_int32_t), parameter :: CMM_ERROR_Y_ALIGN = 61
    integer(c_int32_t), parameter :: CMM_ERROR_NODES_ALIGN = 62
    integer(c_int32_t), parameter :: CMM_ERROR_LOGITS_ALIGN = 63
    integer(c_int32_t), parameter :: CMM_ERROR_Y_OVERLAP = 64
    integer(c_int32_t), parameter :: CMM_ERROR_NODES_OVERLAP = 65
    integer(c_int32_t), parameter :: CMM_ERROR_LOGITS_OVERLAP = 66
    integer(c_int32_t), parameter :: CMM_ERROR_SCALE_ALIGN = 67
    integer(c_int32_t), parameter :: CMM_ERROR_EXACT_ALIGN = 68
    integer(c_int32_t), parameter :: CMM_ERROR_PATH_ALIGN = 69
    integer(c_int32_t), parameter :: CMM_ERROR_PATH = 70
    integer(c_int32_t), parameter :: CMM_ERROR_MEMORY = 80
    integer(c_int32_t), parameter :: CMM_ERROR_BLAS_NULL = 90
    integer(c_int32_t), parameter :: CMM_ERROR_BLAS_FILE_NULL = 91
    integer(c_int32_t), parameter :: CMM_ERROR_BLAS_FILE = 92
    integer(c_int32_t), parameter :: CMM_ERROR_BLAS_SYMBOLS = 93
    integer(c_int32_t), parameter :: CMM_ERROR_INDEX = 100
    integer(c_int32_t), parameter :: CMM_ERROR_INFO_NULL = 101
    integer(c_int32_t), parameter :: CMM_ERROR_INFO_SIZE = 102
    integer(c_int32_t), parameter :: CMM_ERROR_MEMORY_NULL = 103
    integer(c_int32_t), parameter :: CMM_ERROR_MEMORY_ALIGN = 104
    integer(c_int32_t), parameter :: CMM_ERROR_MEMORY_SIZE = 105
    integer(c_int32_t), parameter :: CMM_ERROR_PACKED_NULL = 106
    integer(c_int32_t), parameter :: CMM_ERROR_BYTES_NULL = 107
    integer(c_int32_t), parameter :: CMM_ERROR_MEMORY_OVERLAP = 108
    integer(c_int32_t), parameter :: CMM_ERROR_OPTIONS_SIZE = 109
    integer(c_int32_t), parameter :: CMM_ERROR_ROW_NOT_FINITE = 110
    integer(c_int32_t), parameter :: CMM_ERROR_SIGMAS = 111
    integer(c_int32_t), parameter :: CMM_ERROR_CUDA_LAUNCH = 120
    integer(c_int32_t), parameter :: CMM_ERROR_CUDA_ABSENT = 121
    integer(c_int32_t), parameter :: CMM_ERROR_CUDA_DEVICE = 122
    integer(c_int32_t), parameter :: CMM_ERROR_WORKSPACE_NULL = 123
    integer(c_int32_t), parameter :: CMM_ERROR_WORKSPACE_ALIGN = 124
    integer(c_int32_t), parameter :: CMM_ERROR_WORKSPACE_SIZE = 125
    integer(c_int32_t), parameter :: CMM_ERROR_WORKSPACE_OVERLAP = 126
    integer(c_int32_t), parameter :: CMM_ERROR_GRADIENTS_NULL = 130
    integer(c_int32_t), parameter :: CMM_ERROR_GRADIENTS_SIZE = 131
    integer(c_int32_t), parameter :: CMM_ERROR_ACCUMULATE = 132
    integer(c_int32_t), parameter :: CMM_ERROR_GRADIENTS_NONE = 133
    integer(c_int32_t), parameter :: CMM_ERROR_LD_DW_IN = 134
    integer(c_int32_t), parameter :: CMM_ERROR_LD_DW_OUT = 135
    integer(c_int32_t), parameter :: CMM_ERROR_NODES_NULL = 136
    integer(c_int32_t), parameter :: CMM_ERROR_LOGITS_NULL = 137
    integer(c_int32_t), parameter :: CMM_ERROR_DY_NULL = 138
    integer(c_int32_t), parameter :: CMM_ERROR_DY_ALIGN = 139
    integer(c_int32_t), parameter :: CMM_ERROR_DX_ALIGN = 140
    integer(c_int32_t), parameter :: CMM_ERROR_DW_IN_ALIGN = 141
    integer(c_int32_t), parameter :: CMM_ERROR_DBIAS_ALIGN = 142
    integer(c_int32_t), parameter :: CMM_ERROR_DW_OUT_ALIGN = 143
    integer(c_int32_t), parameter :: CMM_ERROR_DX_OVERLAP = 144
    integer(c_int32_t), parameter :: CMM_ERROR_DW_IN_OVERLAP = 145
    integer(c_int32_t), parameter :: CMM_ERROR_DBIAS_OVERLAP = 146
    integer(c_int32_t), parameter :: CMM_ERROR_DW_OUT_OVERLAP = 147
    integer(c_int32_t), parameter :: CMM_F32 = 0
    integer(c_int32_t), parameter :: CMM_F64 = 1
    integer(c_int32_t), parameter :: CMM_BF16 = 2
    integer(c_int32_t), parameter :: CMM_F16 = 3
    integer(c_int32_t), parameter :: CMM_I8 = 4
    integer(c_int32_t), parameter :: CMM_AS_DTYPE = -1
    integer(c_int32_t), parameter :: CMM_GELU = 0
    integer(c_int32_t), parameter :: CMM_GELU_TANH = 1
    integer(c_int32_t), parameter :: CMM_RELU = 2
    integer(c_int32_t), parameter :: CMM_SILU = 3
    integer(c_int32_t), parameter :: CMM_IDENTITY = 4
    integer(c_int32_t), parameter :: CMM_TIE_LEFT = 0
    integer(c_int32_t), parameter :: CMM_TIE_RIGHT = 1
    integer(c_int32_t), parameter :: CMM_MAX_DEPTH = 30
    integer(c_int32_t), parameter :: CMM_ALIGNMENT = 64
    integer(c_int32_t), parameter :: CMM_DX = 1
    integer(c_int32_t), parameter :: CMM_DW_IN = 2
    integer(c_int32_t), parameter :: CMM_DBIAS = 4
    integer(c_int32_t), parameter :: CMM_DW_OUT = 8

    type, bind(C) :: cmm_blas
        integer(c_int32_t) :: size = 248
        integer(c_int32_t) :: reserved = 0
        type(c_funptr) :: sdot = c_null_funptr
        type(c_funptr) :: ddot = c_null_funptr
        type(c_funptr) :: saxpy = c_null_funptr
        type(c_funptr) :: daxpy = c_null_funptr
        type(c_funptr) :: sgemv = c_null_funptr
        type(c_funptr) :: dgemv = c_null_funptr
        type(c_funptr) :: sgemm = c_null_funptr
        type(c_funptr) :: dgemm = c_null_funptr
        type(c_funptr) :: sgemv_batch = c_null_funptr
        type(c_funptr) :: dgemv_batch = c_null_funptr
        type(c_funptr) :: sgemm_batch = c_null_funptr
        type(c_funptr) :: dgemm_batch = c_null_funptr
        type(c_funptr) :: set_threads = c_null_funptr
        type(c_funptr) :: get_threads = c_null_funptr
        character(kind=c_char) :: name(128) = c_null_char
    end type

    type, bind(C) :: cmm_ff
        integer(c_int32_t) :: size = 80
        integer(c_int32_t) :: dtype = 0
        integer(c_int32_t) :: activation = 0
        integer(c_int32_t) :: reserved = 0
        integer(c_int64_t) :: neurons = 0
        integer(c_int64_t) :: d_in = 0
        integer(c_int64_t) :: d_out = 0
        type(c_ptr) :: w_in = c_null_ptr
        type(c_ptr) :: bias = c_null_ptr
        type(c_ptr) :: w_out = c_null_ptr
        integer(c_int64_t) :: ld_in = 0
        integer(c_int64_t) :: ld_out = 0
    end type

    type, bind(C) :: cmm_fff
        integer(c_int32_t) :: size = 136
        integer(c_int32_t) :: dtype = 0
        integer(c_int32_t) :: activation = 0
        integer(c_int32_t) :: tie = 0
        integer(c_int32_t) :: depth = 0
        integer(c_int32_t) :: reserved = 0
        integer(c_int64_t) :: trees = 0
        integer(c_int64_t) :: d_in = 0
        integer(c_int64_t) :: d_out = 0
        type(c_ptr) :: w_in = c_null_ptr
        type(c_ptr) :: bias = c_null_ptr
        type(c_ptr) :: w_out = c_null_ptr
        integer(c_int64_t) :: ld_in = 0
        integer(c_int64_t) :: ld_out = 0
        integer(c_int32_t) :: weight_dtype = 0
        integer(c_int32_t) :: weight_out_dtype = 0
        type(c_ptr) :: scale_in = c_null_ptr
        type(c_ptr) :: scale_out = c_null_ptr
        type(c_ptr) :: exact_in = c_null_ptr
        type(c_ptr) :: margin = c_null_ptr
        integer(c_int64_t) :: ld_exact = 0
    end type

    type, bind(C) :: cmm_gradients
        integer(c_int32_t) :: size = 72
        integer(c_int32_t) :: accumulate = 0
        type(c_ptr) :: dx = c_null_ptr
        type(c_ptr) :: dw_in = c_null_ptr
        type(c_ptr) :: dbias = c_null_ptr
        type(c_ptr) :: dw_out = c_null_ptr
        integer(c_int64_t) :: ld_dw_in = 0
        integer(c_int64_t) :: ld_dw_out = 0
        type(c_ptr) :: workspace = c_null_ptr
        integer(c_int64_t) :: workspace_bytes = 0
    end type

    type, bind(C) :: cmm_kernel_info
        integer(c_int32_t) :: size = 72
        integer(c_int32_t) :: available = 0
        type(c_ptr) :: operation = c_null_ptr
        type(c_ptr) :: name = c_null_ptr
        type(c_ptr) :: level = c_null_ptr
        type(c_ptr) :: algorithm = c_null_ptr
        type(c_ptr) :: isa = c_null_ptr
        type(c_ptr) :: reason = c_null_ptr
        type(c_ptr) :: x_type = c_null_ptr
        type(c_ptr) :: w_type = c_null_ptr
    end type

    type, bind(C) :: cmm_level_info
        integer(c_int32_t) :: size = 32
        integer(c_int32_t) :: available = 0
        type(c_ptr) :: name = c_null_ptr
        type(c_ptr) :: isa = c_null_ptr
        type(c_ptr) :: reason = c_null_ptr
    end type

    type, bind(C) :: cmm_pack_options
        integer(c_int32_t) :: size = 32
        integer(c_int32_t) :: weight_dtype = 0
        integer(c_int32_t) :: weight_out_dtype = 0
        integer(c_int32_t) :: exact_path = 0
        real(c_double) :: sigmas = 0
        type(c_ptr) :: refused = c_null_ptr
    end type

    type, bind(C) :: cmm_run
        integer(c_int32_t) :: size = 72
        integer(c_int32_t) :: threads = 0
        type(c_ptr) :: level = c_null_ptr
        type(c_ptr) :: isa = c_null_ptr
        type(c_ptr) :: algorithm = c_null_ptr
        type(c_ptr) :: blas = c_null_ptr
        type(c_ptr) :: path_nodes = c_null_ptr
        type(c_ptr) :: path_leaves = c_null_ptr
        type(c_ptr) :: refused = c_null_ptr
        type(c_ptr) :: recomputed = c_null_ptr
    end type

    interface
        integer(c_int32_t) function cmm_blas_check(a0) bind(C)
            import
            type(c_ptr), value :: a0
        end function
        integer(c_int32_t) function cmm_blas_linked(a0) bind(C)
            import
            type(c_ptr), value :: a0
        end function
        integer(c_int32_t) function cmm_blas_load(a0, a1) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
        end function
        type(c_ptr) function cmm_build() bind(C)
            import
        end function
        integer(c_int32_t) function cmm_cmm_forward(a0, a1, a2, a3, a4, a5) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            integer(c_int64_t), value :: a2
            type(c_ptr), value :: a3
            type(c_ptr), value :: a4
            type(c_ptr), value :: a5
        end function
        integer(c_int32_t) function cmm_ff_forward(a0, a1, a2, a3, a4) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            integer(c_int64_t), value :: a2
            type(c_ptr), value :: a3
            type(c_ptr), value :: a4
        end function
        integer(c_int32_t) function cmm_fff_backward(a0, a1, a2, a3, a4, a5, a6, a7) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            integer(c_int64_t), value :: a2
            type(c_ptr), value :: a3
            type(c_ptr), value :: a4
            type(c_ptr), value :: a5
            type(c_ptr), value :: a6
            type(c_ptr), value :: a7
        end function
        integer(c_int32_t) function cmm_fff_backward_workspace(a0, a1, a2, a3, a4) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            integer(c_int64_t), value :: a2
            type(c_ptr), value :: a3
            type(c_ptr), value :: a4
        end function
        integer(c_int32_t) function cmm_fff_forward(a0, a1, a2, a3, a4, a5, a6) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            integer(c_int64_t), value :: a2
            type(c_ptr), value :: a3
            type(c_ptr), value :: a4
            type(c_ptr), value :: a5
            type(c_ptr), value :: a6
        end function
        integer(c_int32_t) function cmm_fff_pack(a0, a1, a2, a3) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            integer(c_int64_t), value :: a2
            type(c_ptr), value :: a3
        end function
        integer(c_int32_t) function cmm_fff_pack_as(a0, a1, a2, a3, a4) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            type(c_ptr), value :: a2
            integer(c_int64_t), value :: a3
            type(c_ptr), value :: a4
        end function
        integer(c_int32_t) function cmm_fff_pack_size(a0, a1) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
        end function
        integer(c_int32_t) function cmm_fff_pack_size_as(a0, a1, a2) bind(C)
            import
            type(c_ptr), value :: a0
            type(c_ptr), value :: a1
            type(c_ptr), value :: a2
        end function
        integer(c_int32_t) function cmm_kernel_count() bind(C)
            import
        end function
        integer(c_int32_t) function cmm_kernel_get(a0, a1) bind(C)
            import
            integer(c_int32_t), value :: a0
            type(c_ptr), value :: a1
        end function
        integer(c_int32_t) function cmm_level_count() bind(C)
            import
        end function
        integer(c_int32_t) function cmm_level_get(a0, a1, a2) bind(C)
            import
            integer(c_int32_t), value :: a0
            type(c_ptr), value :: a1
            type(c_ptr), value :: a2
        end function
        type(c_ptr) function cmm_status_message(a0) bind(C)
            import
            integer(c_int32_t), value :: a0
        end function
        type(c_ptr) function cmm_status_name(a0) bind(C)
            import
            integer(c_int32_t), value :: a0
        end function
        integer(c_int32_t) function cmm_threads_default() bind(C)
            import
        end function
        type(c_ptr) function cmm_threads_source() bind(C)
            import
        end function
        type(c_ptr) function cmm_version() bind(C)
            import
        end function
    end interface
end module
