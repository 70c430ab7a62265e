/* The encoder's kernels for a GPU, but for its products with weights and its FFF layers. NVRTC compiles them for one
 * model, with TYPE (0 float32, 1 bfloat16, 2 float16), WIDTH and HEAD, the width of the encoder and of a head.
 *
 * The hidden state x is float32, and so is all arithmetic; what products read is of type T. Nothing is included, so
 * that no folder of headers has to be found: 16-bit numbers are bits, converted by PTX. */

typedef long long int64;

#if TYPE == 0
typedef float T;

__device__ __forceinline__ float widen(T v)
{
    return v;
}

__device__ __forceinline__ T narrow(float v)
{
    return v;
}
#else
typedef unsigned short T;

__device__ __forceinline__ float widen(T v)
{
#if TYPE == 1
    return __uint_as_float((unsigned)v << 16);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v));
    return wide;
#endif
}

/* Two numbers rounded to the nearest, ties to even; low in the low half. */
__device__ __forceinline__ unsigned narrow_pair(float low, float high)
{
    unsigned pair;
#if TYPE == 1
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

__device__ __forceinline__ T narrow(float v)
{
    return (T)narrow_pair(v, 0.0f);
}

extern "C" __global__ void narrow_all(const float *from, T *to, int64 count)
{
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        to[i] = narrow(from[i]);
}

extern "C" __global__ void widen_all(const T *from, float *to, int64 count)
{
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        to[i] = widen(from[i]);
}
#endif

/* ---- layer norms ----------------------------------------------------------------------------------------------- */

enum {
    GROUP = WIDTH <= 1024 ? 32 : 256, /* threads of a row */
    ROW_BLOCK = WIDTH <= 1024 ? 128 : 256,
    VECTOR = WIDTH % 4 == 0 ? 4 : 1, /* neighbouring elements that a thread reads at once */
    PARTS = (WIDTH + GROUP * VECTOR - 1) / (GROUP * VECTOR)
};

__device__ __forceinline__ void load(const float *p, float *v)
{
    if (VECTOR == 4) {
        const float4 four = *(const float4 *)p;
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else {
        v[0] = *p;
    }
}

__device__ __forceinline__ void store(float *p, const float *v)
{
    if (VECTOR == 4)
        *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
    else
        *p = v[0];
}

#if TYPE != 0
__device__ __forceinline__ void load(const T *p, float *v)
{
    if (VECTOR == 4) {
        const uint2 four = *(const uint2 *)p;
        v[0] = widen((T)four.x), v[1] = widen((T)(four.x >> 16));
        v[2] = widen((T)four.y), v[3] = widen((T)(four.y >> 16));
    } else {
        v[0] = widen(*p);
    }
}

__device__ __forceinline__ void store(T *p, const float *v)
{
    if (VECTOR == 4)
        *(uint2 *)p = make_uint2(narrow_pair(v[0], v[1]), narrow_pair(v[2], v[3]));
    else
        *p = narrow(v[0]);
}
#endif

/* The sum over the threads of a row. */
__device__ __forceinline__ float row_sum(float v)
{
    for (int offset = 16; offset; offset /= 2)
        v += __shfl_xor_sync(~0u, v, offset);
    if (GROUP > 32) {
        __shared__ float sums[GROUP / 32];
        __syncthreads(); /* the sums of the last call have been read */
        if (threadIdx.x % 32 == 0)
            sums[threadIdx.x / 32] = v;
        __syncthreads();
        v = 0.0f;
        for (int warp = 0; warp < GROUP / 32; warp++)
            v += sums[warp];
    }
    return v;
}

/* Writes a row with mean 0 and (biased) variance 1, scaled and shifted. v is 0 behind its end. */
template <class Out>
__device__ __forceinline__ void normalise(float (&v)[PARTS][VECTOR], int lane, const float *weight, const float *bias,
                                          float eps, Out *out)
{
    float sum = 0.0f;
    for (int part = 0; part < PARTS; part++)
        for (int e = 0; e < VECTOR; e++)
            sum += v[part][e];
    const float mean = row_sum(sum) / WIDTH;
    sum = 0.0f;
    for (int part = 0; part < PARTS; part++)
        for (int e = 0; e < VECTOR; e++) {
            v[part][e] -= mean;
            if ((part * GROUP + lane) * VECTOR < WIDTH)
                sum += v[part][e] * v[part][e];
        }
    const float scale = 1.0f / sqrtf(row_sum(sum) / WIDTH + eps);
    for (int part = 0; part < PARTS; part++) {
        const int column = (part * GROUP + lane) * VECTOR;
        if (column < WIDTH) {
            float w[VECTOR], b[VECTOR];
            load(weight + column, w);
            load(bias + column, b);
            for (int e = 0; e < VECTOR; e++)
                w[e] = v[part][e] * scale * w[e] + b[e];
            store(out + column, w);
        }
    }
}

/* x = norm(word[ids] + scale * positions); ids are (B, length), positions (length, WIDTH). */
extern "C" __global__ void __launch_bounds__(ROW_BLOCK)
    embed(const int *ids, const T *word, const float *scale, const float *positions, int length, const float *weight,
          const float *bias, float eps, float *x, int64 tokens)
{
    const int64 token = (int64)blockIdx.x * (ROW_BLOCK / GROUP) + threadIdx.x / GROUP;
    const int lane = threadIdx.x % GROUP;
    if (token >= tokens)
        return;
    float v[PARTS][VECTOR] = {};
    for (int part = 0; part < PARTS; part++) {
        const int column = (part * GROUP + lane) * VECTOR;
        if (column < WIDTH) {
            float p[VECTOR];
            load(word + (int64)ids[token] * WIDTH + column, v[part]);
            load(positions + token % length * WIDTH + column, p);
            for (int e = 0; e < VECTOR; e++)
                v[part][e] += *scale * p[e];
        }
    }
    normalise(v, lane, weight, bias, eps, x + token * WIDTH);
}

/* x += delta, where there is one; out = norm(x). */
template <class Out>
__device__ __forceinline__ void add_and_normalise(float *x, const T *delta, const float *weight, const float *bias,
                                                  float eps, Out *out, int64 tokens)
{
    const int64 token = (int64)blockIdx.x * (ROW_BLOCK / GROUP) + threadIdx.x / GROUP;
    const int lane = threadIdx.x % GROUP;
    if (token >= tokens)
        return;
    float v[PARTS][VECTOR] = {};
    for (int part = 0; part < PARTS; part++) {
        const int column = (part * GROUP + lane) * VECTOR;
        if (column < WIDTH)
            load(x + token * WIDTH + column, v[part]);
    }
    if (delta)
        for (int part = 0; part < PARTS; part++) {
            const int column = (part * GROUP + lane) * VECTOR;
            if (column < WIDTH) {
                float d[VECTOR];
                load(delta + token * WIDTH + column, d);
                for (int e = 0; e < VECTOR; e++)
                    v[part][e] += d[e];
                store(x + token * WIDTH + column, v[part]);
            }
        }
    normalise(v, lane, weight, bias, eps, out + token * WIDTH);
}

extern "C" __global__ void __launch_bounds__(ROW_BLOCK) add_norm(float *x, const T *delta, const float *weight,
                                                                 const float *bias, float eps, T *out, int64 tokens)
{
    add_and_normalise(x, delta, weight, bias, eps, out, tokens);
}

extern "C" __global__ void __launch_bounds__(ROW_BLOCK)
    add_norm_wide(float *x, const T *delta, const float *weight, const float *bias, float eps, float *out, int64 tokens)
{
    add_and_normalise(x, delta, weight, bias, eps, out, tokens);
}

/* ---- GELU ------------------------------------------------------------------------------------------------------ */

extern "C" __global__ void gelu(T *x, int64 count)
{
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        const float v = widen(x[i]);
        x[i] = narrow(v * normcdff(v));
    }
}

extern "C" __global__ void gelu_wide(float *x, int64 count)
{
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        x[i] *= normcdff(x[i]);
}

/* h = gelu(gate) * value, where a row of x is [value | gate], each of so many neurons; count numbers of h. */
extern "C" __global__ void gelu_gated(const T *x, T *h, int neurons, int64 count)
{
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        const T *value = x + i / neurons * 2 * neurons + i % neurons;
        const float gate = widen(value[neurons]);
        h[i] = narrow(gate * normcdff(gate) * widen(*value));
    }
}

/* ---- attention ------------------------------------------------------------------------------------------------- *
 * context = softmax(q k^T * scale + mask) v, of one head and some queries a block. A row of qkv is [q | k | v] head by
 * head. Keys come in tiles; the maximum so far is subtracted before the exponential, and what has been summed is
 * rescaled where it grows (the "online" softmax of Milakov and Gimelshein, arXiv 1805.02867).
 *
 * mask: bytes, 1 attend and 0 not, at mask[sequence * mask_sequence + query * mask_query + key]; or null. What is masked
 * gets -10000, as in training. Grid: (sequences * heads, blocks of queries). */

#define MINUS_INFINITY __int_as_float(0xff800000)

struct masked {
    const unsigned char *row; /* of query 0 of the sequence, or null */
    int64 query_pitch;
    int length;

    __device__ __forceinline__ float operator()(float score, int query, int key) const
    {
        if (key >= length)
            return MINUS_INFINITY;
        if (row && query < length && !row[query * query_pitch + key])
            score += -10000.0f; /* rounded here, as the specification has it */
        return score;
    }
};

/* By multiply-adds, for float32, and for heads too wide for the kernel below. Of a tile of scores, and of 64 columns of
 * the context, 16 x 16 threads have a rectangle each: ROWS queries, and SIDE keys or 4 columns. */
enum {
    SIDE = HEAD <= 128 ? 4 : HEAD <= 512 ? 2 : 1,
    KEY_TILE = 16 * SIDE, /* keys at a time */
    CHUNK = 64,           /* columns of q, k and v at a time */
    CHUNKS = (HEAD + CHUNK - 1) / CHUNK,
};

/* Neighbours, at an address that is aligned to all of them or to 16 bytes. */
template <int N> __device__ __forceinline__ void read(const float *p, float (&v)[N])
{
    if constexpr (N % 4 == 0)
        for (int i = 0; i < N; i += 4) {
            const float4 four = *(const float4 *)(p + i);
            v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
        }
    else
        for (int i = 0; i < N; i++)
            v[i] = p[i];
}

/* Columns of so many rows, transposed; 0 beyond the last column and row. Neighbouring threads have neighbouring rows, so
 * that their writes go to different banks. */
template <int TILE>
__device__ __forceinline__ void fill_transposed(float *to, const T *from, int first, int length, int columns)
{
    constexpr int pitch = TILE + 4;
#if TYPE == 0 && HEAD % 4 == 0
    for (int i = threadIdx.x; i < TILE * CHUNK / 4; i += 256) {
        const int row = i % TILE, column = i / TILE * 4;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < length && column < columns)
            v = *(const float4 *)(from + (int64)(first + row) * 3 * WIDTH + column);
        float *const at = to + column * pitch + row;
        at[0] = v.x, at[pitch] = v.y, at[2 * pitch] = v.z, at[3 * pitch] = v.w;
    }
#else
    for (int i = threadIdx.x; i < TILE * CHUNK; i += 256) {
        const int row = i % TILE, column = i / TILE;
        const bool within = first + row < length && column < columns;
        to[column * pitch + row] = within ? widen(from[(int64)(first + row) * 3 * WIDTH + column]) : 0.0f;
    }
#endif
}

template <int ROWS>
__device__ __forceinline__ void attend_fma(const T *qkv, T *context, const unsigned char *mask, int64 mask_sequence,
                                           int64 mask_query, int length, float scale)
{
    constexpr int tile = 16 * ROWS, query_pitch = tile + 4, key_pitch = KEY_TILE + 4;
    extern __shared__ float4 shared[];
    float *const qs = (float *)shared, *const ks = qs + CHUNK * query_pitch, *const ps = ks + CHUNK * key_pitch;
    float *const vs = ks; /* KEY_TILE rows of CHUNK columns, once the scores are there */
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int heads = WIDTH / HEAD, head = blockIdx.x % heads;
    const int64 sequence = blockIdx.x / heads;
    const T *const base = qkv + sequence * length * 3 * WIDTH + head * 3 * HEAD;
    const int first = blockIdx.y * tile;
    const masked masked = {mask ? mask + sequence * mask_sequence : nullptr, mask_query, length};
    float sums[CHUNKS][ROWS][4] = {}, most[ROWS], total[ROWS] = {};
    for (int i = 0; i < ROWS; i++)
        most[i] = MINUS_INFINITY;
    for (int key = 0; key < length; key += KEY_TILE) {
        float s[ROWS][SIDE] = {};
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const int left = HEAD - chunk * CHUNK, columns = left < CHUNK ? left : CHUNK;
            __syncthreads(); /* what is overwritten has been read */
            if (CHUNKS > 1 || key == 0)
                fill_transposed<tile>(qs, base + chunk * CHUNK, first, length, columns);
            fill_transposed<KEY_TILE>(ks, base + HEAD + chunk * CHUNK, key, length, columns);
            __syncthreads();
#pragma unroll 8
            for (int column = 0; column < columns; column++) {
                float q[ROWS], k[SIDE];
                read(qs + column * query_pitch + y * ROWS, q);
                read(ks + column * key_pitch + x * SIDE, k);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < SIDE; j++)
                        s[i][j] += q[i] * k[j];
            }
        }
        for (int i = 0; i < ROWS; i++) {
            float top = most[i], sum = 0.0f;
            for (int j = 0; j < SIDE; j++) {
                s[i][j] = masked(__fmul_rn(s[i][j], scale), first + y * ROWS + i, key + x * SIDE + j);
                top = fmaxf(top, s[i][j]);
            }
            for (int offset = 8; offset; offset /= 2)
                top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
            for (int j = 0; j < SIDE; j++)
                sum += s[i][j] = expf(s[i][j] - top);
            for (int offset = 8; offset; offset /= 2)
                sum += __shfl_xor_sync(~0u, sum, offset);
            const float rescale = expf(most[i] - top);
            total[i] = total[i] * rescale + sum;
            most[i] = top;
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                for (int e = 0; e < 4; e++)
                    sums[chunk][i][e] *= rescale;
            for (int j = 0; j < SIDE; j++) /* key x * SIDE + j in row j * 16 + x: no two threads in one bank */
                ps[(j * 16 + x) * query_pitch + y * ROWS + i] = s[i][j];
        }
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const int left = HEAD - chunk * CHUNK, columns = left < CHUNK ? left : CHUNK;
            __syncthreads();
#pragma unroll 4
            for (int i = threadIdx.x; i < KEY_TILE * CHUNK; i += 256) {
                const int row = i / CHUNK, column = i % CHUNK;
                const bool within = key + row < length && column < columns;
                const int64 at = (int64)(key + row) * 3 * WIDTH + 2 * HEAD + chunk * CHUNK + column;
                vs[i] = within ? widen(base[at]) : 0.0f;
            }
            __syncthreads();
#pragma unroll 8
            for (int row = 0; row < KEY_TILE; row++) {
                float p[ROWS], v[4];
                read(ps + row * query_pitch + y * ROWS, p);
                read(vs + (row % 16 * SIDE + row / 16) * CHUNK + x * 4, v);
                for (int i = 0; i < ROWS; i++)
                    for (int e = 0; e < 4; e++)
                        sums[chunk][i][e] += p[i] * v[e];
            }
        }
    }
    for (int i = 0; i < ROWS; i++) {
        const int query = first + y * ROWS + i;
        if (query >= length)
            continue;
        T *const out = context + (sequence * length + query) * WIDTH + head * HEAD;
        for (int chunk = 0; chunk < CHUNKS; chunk++)
            for (int e = 0; e < 4; e++) {
                const int column = chunk * CHUNK + x * 4 + e;
                if (column < HEAD)
                    out[column] = narrow(sums[chunk][i][e] / total[i]);
            }
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    attention_fma(const T *qkv, T *context, const unsigned char *mask, int64 mask_sequence, int64 mask_query, int length,
                  float scale)
{
    attend_fma<SIDE>(qkv, context, mask, mask_sequence, mask_query, length, scale);
}

/* Twice as many queries: fewer reads of shared memory for a multiply-add. For more than 16 * SIDE of them. */
extern "C" __global__ void __launch_bounds__(256, 2)
    attention_fma_tall(const T *qkv, T *context, const unsigned char *mask, int64 mask_sequence, int64 mask_query,
                       int length, float scale)
{
    attend_fma<2 * SIDE>(qkv, context, mask, mask_sequence, mask_query, length, scale);
}

/* On tensor cores, for heads of up to 128. A warp has 16 queries; tiles of keys and values come by asynchronous copies,
 * one ahead. The weights of the softmax are rounded to T before they meet the values, their sum is of float32. */
#if TYPE != 0 && HEAD <= 128
enum {
    PADDED = (HEAD + 15) / 16 * 16,
    KEYS = 64,           /* at a time */
    ROW_PITCH = PADDED + 8 /* 16 bytes more: eight rows of a matrix lie in different banks */
};

__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
#if TYPE == 1
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#endif
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* Four 8 x 8 matrices; a lane gives the address of one row of them. */
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const T *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_transposed(unsigned (&r)[4], const T *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* Asks for KEYS rows of k, and as many of v behind them; 0 beyond the last key and column. */
__device__ __forceinline__ void fetch(T *to, const T *k, int first, int length)
{
    const T *const v = k + HEAD;
#if HEAD % 8 == 0
    for (int i = threadIdx.x; i < 2 * KEYS * (PADDED / 8); i += blockDim.x) {
        const int row = i / (PADDED / 8), column = i % (PADDED / 8) * 8, key = first + row % KEYS;
        const bool within = key < length && column < HEAD;
        const T *const from = (row < KEYS ? k : v) + (within ? (int64)key * 3 * WIDTH + column : 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to + row * ROW_PITCH + column)),
                     "l"(from), "r"(within ? 16 : 0)
                     : "memory");
    }
#else
    for (int i = threadIdx.x; i < 2 * KEYS * PADDED; i += blockDim.x) {
        const int row = i / PADDED, column = i % PADDED, key = first + row % KEYS;
        const bool within = key < length && column < HEAD;
        to[row * ROW_PITCH + column] = within ? (row < KEYS ? k : v)[(int64)key * 3 * WIDTH + column] : (T)0;
    }
#endif
    asm volatile("cp.async.commit_group;" ::: "memory");
}

__device__ __forceinline__ unsigned load_pair(const T *row, int column, bool within)
{
    if (!within || column >= HEAD)
        return 0;
    if (HEAD % 2 == 0)
        return *(const unsigned *)(row + column);
    return row[column] | (column + 1 < HEAD ? (unsigned)row[column + 1] << 16 : 0);
}

__device__ __forceinline__ void store_pair(T *row, int column, unsigned pair)
{
    if (column >= HEAD)
        return;
    if (HEAD % 2 == 0) {
        *(unsigned *)(row + column) = pair;
    } else {
        row[column] = (T)pair;
        if (column + 1 < HEAD)
            row[column + 1] = (T)(pair >> 16);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    attention_mma(const T *qkv, T *context, const unsigned char *mask, int64 mask_sequence, int64 mask_query, int length,
                  float scale)
{
    extern __shared__ uint4 stages[]; /* two, each of KEYS rows of k and KEYS of v */
    T *const stage = (T *)stages;
    const int lane = threadIdx.x % 32, matrix = lane / 8;
    const int heads = WIDTH / HEAD, head = blockIdx.x % heads;
    const int64 sequence = blockIdx.x / heads;
    const T *const base = qkv + sequence * length * 3 * WIDTH + head * 3 * HEAD;
    const masked masked = {mask ? mask + sequence * mask_sequence : nullptr, mask_query, length};
    const int query = blockIdx.y * (blockDim.x / 2) + threadIdx.x / 32 * 16 + lane / 4; /* and query + 8 */
    fetch(stage, base + HEAD, 0, length);
    unsigned q[PADDED / 16][4];
    for (int step = 0; step < PADDED / 16; step++)
        for (int i = 0; i < 4; i++) {
            const int row = query + i % 2 * 8, column = step * 16 + i / 2 * 8 + lane % 4 * 2;
            q[step][i] = load_pair(base + (int64)row * 3 * WIDTH, column, row < length);
        }
    float sums[PADDED / 8][4] = {}, most[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {};
    for (int first = 0, turn = 0; first < length; first += KEYS, turn ^= 1) {
        if (first + KEYS < length)
            fetch(stage + (turn ^ 1) * 2 * KEYS * ROW_PITCH, base + HEAD, first + KEYS, length);
        else
            asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        const T *const k = stage + turn * 2 * KEYS * ROW_PITCH, *const v = k + KEYS * ROW_PITCH;
        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int step = 0; step < PADDED / 16; step++)
#pragma unroll
            for (int some = 0; some < KEYS / 16; some++) {
                unsigned r[4];
                load_matrices(r, k + (some * 16 + matrix / 2 * 8 + lane % 8) * ROW_PITCH + step * 16 + matrix % 2 * 8);
                multiply(s[2 * some], q[step], r[0], r[1]);
                multiply(s[2 * some + 1], q[step], r[2], r[3]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) { /* query, then query + 8 */
            float top = most[half], sum = 0.0f;
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    const int key = first + i * 8 + lane % 4 * 2 + e % 2;
                    s[i][e] = masked(__fmul_rn(s[i][e], scale), query + half * 8, key);
                    top = fmaxf(top, s[i][e]);
                }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++)
                    sum += s[i][e] = __expf(s[i][e] - top);
            const float rescale = __expf(most[half] - top);
            total[half] = total[half] * rescale + sum; /* of this lane's keys; of all of them at the end */
            most[half] = top;
#pragma unroll
            for (int i = 0; i < PADDED / 8; i++)
                sums[i][2 * half] *= rescale, sums[i][2 * half + 1] *= rescale;
        }
#pragma unroll
        for (int some = 0; some < KEYS / 16; some++) {
            const unsigned p[4] = {
                narrow_pair(s[2 * some][0], s[2 * some][1]),
                narrow_pair(s[2 * some][2], s[2 * some][3]),
                narrow_pair(s[2 * some + 1][0], s[2 * some + 1][1]),
                narrow_pair(s[2 * some + 1][2], s[2 * some + 1][3]),
            };
#pragma unroll
            for (int i = 0; i < PADDED / 16; i++) {
                unsigned r[4];
                load_transposed(r, v + (some * 16 + matrix % 2 * 8 + lane % 8) * ROW_PITCH + i * 16 + matrix / 2 * 8);
                multiply(sums[2 * i], p, r[0], r[1]);
                multiply(sums[2 * i + 1], p, r[2], r[3]);
            }
        }
        __syncthreads(); /* this stage has been read */
    }
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int row = query + half * 8;
        if (row < length) {
            T *const out = context + (sequence * length + row) * WIDTH + head * HEAD;
            for (int i = 0; i < PADDED / 8; i++)
                store_pair(out, i * 8 + lane % 4 * 2,
                           narrow_pair(sums[i][2 * half] / sum, sums[i][2 * half + 1] / sum));
        }
    }
}
#endif
