// Made by libcmm/bindings/generate.py of libcmm/abi.txt: what libcmm exports.
using System;
using System.Runtime.InteropServices;

namespace LibCmm
{
    /// <summary>That of a neuron.</summary>
    public enum Activation
    {
        Gelu = 0,
        GeluTanh = 1,
        Relu = 2,
        Silu = 3,
        Identity = 4,
    }

    /// <summary>Where a logit of exactly 0 goes.</summary>
    public enum Tie
    {
        Left = 0,
        Right = 1,
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_blas
    {
        public uint size;
        public int reserved;
        public IntPtr sdot;
        public IntPtr ddot;
        public IntPtr saxpy;
        public IntPtr daxpy;
        public IntPtr sgemv;
        public IntPtr dgemv;
        public IntPtr sgemm;
        public IntPtr dgemm;
        public IntPtr sgemv_batch;
        public IntPtr dgemv_batch;
        public IntPtr sgemm_batch;
        public IntPtr dgemm_batch;
        public IntPtr set_threads;
        public IntPtr get_threads;
        public fixed byte name[128];
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_ff
    {
        public uint size;
        public int dtype;
        public int activation;
        public int reserved;
        public long neurons;
        public long d_in;
        public long d_out;
        public void* w_in;
        public void* bias;
        public void* w_out;
        public long ld_in;
        public long ld_out;
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_fff
    {
        public uint size;
        public int dtype;
        public int activation;
        public int tie;
        public int depth;
        public int reserved;
        public long trees;
        public long d_in;
        public long d_out;
        public void* w_in;
        public void* bias;
        public void* w_out;
        public long ld_in;
        public long ld_out;
        public int weight_dtype;
        public int weight_out_dtype;
        public float* scale_in;
        public float* scale_out;
        public void* exact_in;
        public float* margin;
        public long ld_exact;
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_gradients
    {
        public uint size;
        public int accumulate;
        public void* dx;
        public void* dw_in;
        public void* dbias;
        public void* dw_out;
        public long ld_dw_in;
        public long ld_dw_out;
        public void* workspace;
        public long workspace_bytes;
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_kernel_info
    {
        public uint size;
        public int available;
        public byte* operation;
        public byte* name;
        public byte* level;
        public byte* algorithm;
        public byte* isa;
        public byte* reason;
        public byte* x_type;
        public byte* w_type;
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_level_info
    {
        public uint size;
        public int available;
        public byte* name;
        public byte* isa;
        public byte* reason;
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_pack_options
    {
        public uint size;
        public int weight_dtype;
        public int weight_out_dtype;
        public int exact_path;
        public double sigmas;
        public long* refused;
    }

    [StructLayout(LayoutKind.Sequential)]
    public unsafe struct cmm_run
    {
        public uint size;
        public int threads;
        public byte* level;
        public byte* isa;
        public byte* algorithm;
        public cmm_blas* blas;
        public int* path_nodes;
        public int* path_leaves;
        public long* refused;
        public long* recomputed;
    }

    /// <summary>The C interface as it is.</summary>
    public static unsafe class Abi
    {
        public const int CMM_OK = 0;
        public const int CMM_ERROR_LAYER_NULL = 10;
        public const int CMM_ERROR_LAYER_SIZE = 11;
        public const int CMM_ERROR_DTYPE = 12;
        public const int CMM_ERROR_ACTIVATION = 13;
        public const int CMM_ERROR_TIE = 14;
        public const int CMM_ERROR_TREES = 15;
        public const int CMM_ERROR_DEPTH = 16;
        public const int CMM_ERROR_NEURONS = 17;
        public const int CMM_ERROR_D_IN = 18;
        public const int CMM_ERROR_D_OUT = 19;
        public const int CMM_ERROR_LD_IN = 20;
        public const int CMM_ERROR_LD_OUT = 21;
        public const int CMM_ERROR_LAYER_TOO_LARGE = 22;
        public const int CMM_ERROR_RESERVED = 23;
        public const int CMM_ERROR_WEIGHT_DTYPE = 24;
        public const int CMM_ERROR_SCALE = 25;
        public const int CMM_ERROR_EXACT = 26;
        public const int CMM_ERROR_LD_EXACT = 27;
        public const int CMM_ERROR_RUN_SIZE = 30;
        public const int CMM_ERROR_THREADS = 31;
        public const int CMM_ERROR_LEVEL = 32;
        public const int CMM_ERROR_LEVEL_UNUSABLE = 33;
        public const int CMM_ERROR_ISA = 34;
        public const int CMM_ERROR_ISA_UNUSABLE = 35;
        public const int CMM_ERROR_METHOD = 36;
        public const int CMM_ERROR_BLAS_MISSING = 37;
        public const int CMM_ERROR_BLAS_SIZE = 38;
        public const int CMM_ERROR_BLAS_INCOMPLETE = 39;
        public const int CMM_ERROR_LEVEL_WEIGHT_DTYPE = 40;
        public const int CMM_ERROR_PATH_TWICE = 41;
        public const int CMM_ERROR_PATH_DENSE = 42;
        public const int CMM_ERROR_BATCH = 50;
        public const int CMM_ERROR_BATCH_TOO_LARGE = 51;
        public const int CMM_ERROR_W_IN_NULL = 52;
        public const int CMM_ERROR_W_OUT_NULL = 53;
        public const int CMM_ERROR_X_NULL = 54;
        public const int CMM_ERROR_Y_NULL = 55;
        public const int CMM_ERROR_PATH_NULL = 56;
        public const int CMM_ERROR_W_IN_ALIGN = 57;
        public const int CMM_ERROR_BIAS_ALIGN = 58;
        public const int CMM_ERROR_W_OUT_ALIGN = 59;
        public const int CMM_ERROR_X_ALIGN = 60;
        public const int CMM_ERROR_Y_ALIGN = 61;
        public const int CMM_ERROR_NODES_ALIGN = 62;
        public const int CMM_ERROR_LOGITS_ALIGN = 63;
        public const int CMM_ERROR_Y_OVERLAP = 64;
        public const int CMM_ERROR_NODES_OVERLAP = 65;
        public const int CMM_ERROR_LOGITS_OVERLAP = 66;
        public const int CMM_ERROR_SCALE_ALIGN = 67;
        public const int CMM_ERROR_EXACT_ALIGN = 68;
        public const int CMM_ERROR_PATH_ALIGN = 69;
        public const int CMM_ERROR_PATH = 70;
        public const int CMM_ERROR_MEMORY = 80;
        public const int CMM_ERROR_BLAS_NULL = 90;
        public const int CMM_ERROR_BLAS_FILE_NULL = 91;
        public const int CMM_ERROR_BLAS_FILE = 92;
        public const int CMM_ERROR_BLAS_SYMBOLS = 93;
        public const int CMM_ERROR_INDEX = 100;
        public const int CMM_ERROR_INFO_NULL = 101;
        public const int CMM_ERROR_INFO_SIZE = 102;
        public const int CMM_ERROR_MEMORY_NULL = 103;
        public const int CMM_ERROR_MEMORY_ALIGN = 104;
        public const int CMM_ERROR_MEMORY_SIZE = 105;
        public const int CMM_ERROR_PACKED_NULL = 106;
        public const int CMM_ERROR_BYTES_NULL = 107;
        public const int CMM_ERROR_MEMORY_OVERLAP = 108;
        public const int CMM_ERROR_OPTIONS_SIZE = 109;
        public const int CMM_ERROR_ROW_NOT_FINITE = 110;
        public const int CMM_ERROR_SIGMAS = 111;
        public const int CMM_ERROR_CUDA_LAUNCH = 120;
        public const int CMM_ERROR_CUDA_ABSENT = 121;
        public const int CMM_ERROR_CUDA_DEVICE = 122;
        public const int CMM_ERROR_WORKSPACE_NULL = 123;
        public const int CMM_ERROR_WORKSPACE_ALIGN = 124;
        public const int CMM_ERROR_WORKSPACE_SIZE = 125;
        public const int CMM_ERROR_WORKSPACE_OVERLAP = 126;
        public const int CMM_ERROR_GRADIENTS_NULL = 130;
        public const int CMM_ERROR_GRADIENTS_SIZE = 131;
        public const int CMM_ERROR_ACCUMULATE = 132;
        public const int CMM_ERROR_GRADIENTS_NONE = 133;
        public const int CMM_ERROR_LD_DW_IN = 134;
        public const int CMM_ERROR_LD_DW_OUT = 135;
        public const int CMM_ERROR_NODES_NULL = 136;
        public const int CMM_ERROR_LOGITS_NULL = 137;
        public const int CMM_ERROR_DY_NULL = 138;
        public const int CMM_ERROR_DY_ALIGN = 139;
        public const int CMM_ERROR_DX_ALIGN = 140;
        public const int CMM_ERROR_DW_IN_ALIGN = 141;
        public const int CMM_ERROR_DBIAS_ALIGN = 142;
        public const int CMM_ERROR_DW_OUT_ALIGN = 143;
        public const int CMM_ERROR_DX_OVERLAP = 144;
        public const int CMM_ERROR_DW_IN_OVERLAP = 145;
        public const int CMM_ERROR_DBIAS_OVERLAP = 146;
        public const int CMM_ERROR_DW_OUT_OVERLAP = 147;
        public const int CMM_F32 = 0;
        public const int CMM_F64 = 1;
        public const int CMM_BF16 = 2;
        public const int CMM_F16 = 3;
        public const int CMM_I8 = 4;
        public const int CMM_AS_DTYPE = -1;
        public const int CMM_GELU = 0;
        public const int CMM_GELU_TANH = 1;
        public const int CMM_RELU = 2;
        public const int CMM_SILU = 3;
        public const int CMM_IDENTITY = 4;
        public const int CMM_TIE_LEFT = 0;
        public const int CMM_TIE_RIGHT = 1;
        public const int CMM_MAX_DEPTH = 30;
        public const int CMM_ALIGNMENT = 64;
        public const int CMM_DX = 1;
        public const int CMM_DW_IN = 2;
        public const int CMM_DBIAS = 4;
        public const int CMM_DW_OUT = 8;

        static Abi()
        {
            if (sizeof(cmm_blas) != 248
                || sizeof(cmm_ff) != 80
                || sizeof(cmm_fff) != 136
                || sizeof(cmm_gradients) != 72
                || sizeof(cmm_kernel_info) != 72
                || sizeof(cmm_level_info) != 32
                || sizeof(cmm_pack_options) != 32
                || sizeof(cmm_run) != 72)
                throw new PlatformNotSupportedException("libcmm is for machines of 64 bits here");
        }

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_blas_check(cmm_blas* a0);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_blas_linked(cmm_blas* a0);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_blas_load(byte* a0, cmm_blas* a1);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern byte* cmm_build();

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_cmm_forward(cmm_fff* a0, cmm_run* a1, long a2, void* a3, int* a4, void* a5);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_ff_forward(cmm_ff* a0, cmm_run* a1, long a2, void* a3, void* a4);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_fff_backward(cmm_fff* a0, cmm_run* a1, long a2, void* a3, int* a4, void* a5, void* a6, cmm_gradients* a7);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_fff_backward_workspace(cmm_fff* a0, cmm_run* a1, long a2, cmm_gradients* a3, long* a4);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_fff_forward(cmm_fff* a0, cmm_run* a1, long a2, void* a3, void* a4, int* a5, void* a6);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_fff_pack(cmm_fff* a0, void* a1, long a2, cmm_fff* a3);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_fff_pack_as(cmm_fff* a0, cmm_pack_options* a1, void* a2, long a3, cmm_fff* a4);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_fff_pack_size(cmm_fff* a0, long* a1);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_fff_pack_size_as(cmm_fff* a0, cmm_pack_options* a1, long* a2);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_kernel_count();

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_kernel_get(int a0, cmm_kernel_info* a1);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_level_count();

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_level_get(int a0, cmm_run* a1, cmm_level_info* a2);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern byte* cmm_status_message(int a0);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern byte* cmm_status_name(int a0);

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern int cmm_threads_default();

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern byte* cmm_threads_source();

        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]
        public static extern byte* cmm_version();
    }
}
