// Made by libcmm/bindings/generate.py of libcmm/abi.txt: what libcmm exports.
package org.libcmm;

/** Constants, and the size of each struct with the offsets of its fields. */
public interface Abi {
    int CMM_OK = 0;
    int CMM_ERROR_LAYER_NULL = 10;
    int CMM_ERROR_LAYER_SIZE = 11;
    int CMM_ERROR_DTYPE = 12;
    int CMM_ERROR_ACTIVATION = 13;
    int CMM_ERROR_TIE = 14;
    int CMM_ERROR_TREES = 15;
    int CMM_ERROR_DEPTH = 16;
    int CMM_ERROR_NEURONS = 17;
    int CMM_ERROR_D_IN = 18;
    int CMM_ERROR_D_OUT = 19;
    int CMM_ERROR_LD_IN = 20;
    int CMM_ERROR_LD_OUT = 21;
    int CMM_ERROR_LAYER_TOO_LARGE = 22;
    int CMM_ERROR_RESERVED = 23;
    int CMM_ERROR_WEIGHT_DTYPE = 24;
    int CMM_ERROR_SCALE = 25;
    int CMM_ERROR_EXACT = 26;
    int CMM_ERROR_LD_EXACT = 27;
    int CMM_ERROR_RUN_SIZE = 30;
    int CMM_ERROR_THREADS = 31;
    int CMM_ERROR_LEVEL = 32;
    int CMM_ERROR_LEVEL_UNUSABLE = 33;
    int CMM_ERROR_ISA = 34;
    int CMM_ERROR_ISA_UNUSABLE = 35;
    int CMM_ERROR_METHOD = 36;
    int CMM_ERROR_BLAS_MISSING = 37;
    int CMM_ERROR_BLAS_SIZE = 38;
    int CMM_ERROR_BLAS_INCOMPLETE = 39;
    int CMM_ERROR_LEVEL_WEIGHT_DTYPE = 40;
    int CMM_ERROR_PATH_TWICE = 41;
    int CMM_ERROR_PATH_DENSE = 42;
    int CMM_ERROR_BATCH = 50;
    int CMM_ERROR_BATCH_TOO_LARGE = 51;
    int CMM_ERROR_W_IN_NULL = 52;
    int CMM_ERROR_W_OUT_NULL = 53;
    int CMM_ERROR_X_NULL = 54;
    int CMM_ERROR_Y_NULL = 55;
    int CMM_ERROR_PATH_NULL = 56;
    int CMM_ERROR_W_IN_ALIGN = 57;
    int CMM_ERROR_BIAS_ALIGN = 58;
    int CMM_ERROR_W_OUT_ALIGN = 59;
    int CMM_ERROR_X_ALIGN = 60;
    int CMM_ERROR_Y_ALIGN = 61;
    int CMM_ERROR_NODES_ALIGN = 62;
    int CMM_ERROR_LOGITS_ALIGN = 63;
    int CMM_ERROR_Y_OVERLAP = 64;
    int CMM_ERROR_NODES_OVERLAP = 65;
    int CMM_ERROR_LOGITS_OVERLAP = 66;
    int CMM_ERROR_SCALE_ALIGN = 67;
    int CMM_ERROR_EXACT_ALIGN = 68;
    int CMM_ERROR_PATH_ALIGN = 69;
    int CMM_ERROR_PATH = 70;
    int CMM_ERROR_MEMORY = 80;
    int CMM_ERROR_BLAS_NULL = 90;
    int CMM_ERROR_BLAS_FILE_NULL = 91;
    int CMM_ERROR_BLAS_FILE = 92;
    int CMM_ERROR_BLAS_SYMBOLS = 93;
    int CMM_ERROR_INDEX = 100;
    int CMM_ERROR_INFO_NULL = 101;
    int CMM_ERROR_INFO_SIZE = 102;
    int CMM_ERROR_MEMORY_NULL = 103;
    int CMM_ERROR_MEMORY_ALIGN = 104;
    int CMM_ERROR_MEMORY_SIZE = 105;
    int CMM_ERROR_PACKED_NULL = 106;
    int CMM_ERROR_BYTES_NULL = 107;
    int CMM_ERROR_MEMORY_OVERLAP = 108;
    int CMM_ERROR_OPTIONS_SIZE = 109;
    int CMM_ERROR_ROW_NOT_FINITE = 110;
    int CMM_ERROR_SIGMAS = 111;
    int CMM_ERROR_CUDA_LAUNCH = 120;
    int CMM_ERROR_CUDA_ABSENT = 121;
    int CMM_ERROR_CUDA_DEVICE = 122;
    int CMM_ERROR_WORKSPACE_NULL = 123;
    int CMM_ERROR_WORKSPACE_ALIGN = 124;
    int CMM_ERROR_WORKSPACE_SIZE = 125;
    int CMM_ERROR_WORKSPACE_OVERLAP = 126;
    int CMM_ERROR_GRADIENTS_NULL = 130;
    int CMM_ERROR_GRADIENTS_SIZE = 131;
    int CMM_ERROR_ACCUMULATE = 132;
    int CMM_ERROR_GRADIENTS_NONE = 133;
    int CMM_ERROR_LD_DW_IN = 134;
    int CMM_ERROR_LD_DW_OUT = 135;
    int CMM_ERROR_NODES_NULL = 136;
    int CMM_ERROR_LOGITS_NULL = 137;
    int CMM_ERROR_DY_NULL = 138;
    int CMM_ERROR_DY_ALIGN = 139;
    int CMM_ERROR_DX_ALIGN = 140;
    int CMM_ERROR_DW_IN_ALIGN = 141;
    int CMM_ERROR_DBIAS_ALIGN = 142;
    int CMM_ERROR_DW_OUT_ALIGN = 143;
    int CMM_ERROR_DX_OVERLAP = 144;
    int CMM_ERROR_DW_IN_OVERLAP = 145;
    int CMM_ERROR_DBIAS_OVERLAP = 146;
    int CMM_ERROR_DW_OUT_OVERLAP = 147;
    int CMM_F32 = 0;
    int CMM_F64 = 1;
    int CMM_BF16 = 2;
    int CMM_F16 = 3;
    int CMM_I8 = 4;
    int CMM_AS_DTYPE = -1;
    int CMM_GELU = 0;
    int CMM_GELU_TANH = 1;
    int CMM_RELU = 2;
    int CMM_SILU = 3;
    int CMM_IDENTITY = 4;
    int CMM_TIE_LEFT = 0;
    int CMM_TIE_RIGHT = 1;
    int CMM_MAX_DEPTH = 30;
    int CMM_ALIGNMENT = 64;
    int CMM_DX = 1;
    int CMM_DW_IN = 2;
    int CMM_DBIAS = 4;
    int CMM_DW_OUT = 8;

    /** The struct cmm_blas. */
    interface cmm_blas {
        int SIZEOF = 248;
        int size = 0;
        int reserved = 4;
        int sdot = 8;
        int ddot = 16;
        int saxpy = 24;
        int daxpy = 32;
        int sgemv = 40;
        int dgemv = 48;
        int sgemm = 56;
        int dgemm = 64;
        int sgemv_batch = 72;
        int dgemv_batch = 80;
        int sgemm_batch = 88;
        int dgemm_batch = 96;
        int set_threads = 104;
        int get_threads = 112;
        int name = 120;
    }

    /** The struct cmm_ff. */
    interface cmm_ff {
        int SIZEOF = 80;
        int size = 0;
        int dtype = 4;
        int activation = 8;
        int reserved = 12;
        int neurons = 16;
        int d_in = 24;
        int d_out = 32;
        int w_in = 40;
        int bias = 48;
        int w_out = 56;
        int ld_in = 64;
        int ld_out = 72;
    }

    /** The struct cmm_fff. */
    interface cmm_fff {
        int SIZEOF = 136;
        int size = 0;
        int dtype = 4;
        int activation = 8;
        int tie = 12;
        int depth = 16;
        int reserved = 20;
        int trees = 24;
        int d_in = 32;
        int d_out = 40;
        int w_in = 48;
        int bias = 56;
        int w_out = 64;
        int ld_in = 72;
        int ld_out = 80;
        int weight_dtype = 88;
        int weight_out_dtype = 92;
        int scale_in = 96;
        int scale_out = 104;
        int exact_in = 112;
        int margin = 120;
        int ld_exact = 128;
    }

    /** The struct cmm_gradients. */
    interface cmm_gradients {
        int SIZEOF = 72;
        int size = 0;
        int accumulate = 4;
        int dx = 8;
        int dw_in = 16;
        int dbias = 24;
        int dw_out = 32;
        int ld_dw_in = 40;
        int ld_dw_out = 48;
        int workspace = 56;
        int workspace_bytes = 64;
    }

    /** The struct cmm_kernel_info. */
    interface cmm_kernel_info {
        int SIZEOF = 72;
        int size = 0;
        int available = 4;
        int operation = 8;
        int name = 16;
        int level = 24;
        int algorithm = 32;
        int isa = 40;
        int reason = 48;
        int x_type = 56;
        int w_type = 64;
    }

    /** The struct cmm_level_info. */
    interface cmm_level_info {
        int SIZEOF = 32;
        int size = 0;
        int available = 4;
        int name = 8;
        int isa = 16;
        int reason = 24;
    }

    /** The struct cmm_pack_options. */
    interface cmm_pack_options {
        int SIZEOF = 32;
        int size = 0;
        int weight_dtype = 4;
        int weight_out_dtype = 8;
        int exact_path = 12;
        int sigmas = 16;
        int refused = 24;
    }

    /** The struct cmm_run. */
    interface cmm_run {
        int SIZEOF = 72;
        int size = 0;
        int threads = 4;
        int level = 8;
        int isa = 16;
        int algorithm = 24;
        int blas = 32;
        int path_nodes = 40;
        int path_leaves = 48;
        int refused = 56;
        int recomputed = 64;
    }

    /** That of a neuron. */
    enum Activation {
        GELU(0),
        GELU_TANH(1),
        RELU(2),
        SILU(3),
        IDENTITY(4);

        final int value;

        Activation(int value) {
            this.value = value;
        }
    }

    /** Where a logit of exactly 0 goes. */
    enum Tie {
        LEFT(0),
        RIGHT(1);

        final int value;

        Tie(int value) {
            this.value = value;
        }
    }
}
