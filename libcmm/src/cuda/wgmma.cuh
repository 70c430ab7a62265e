/* What compute capability 9.0 (sm_90a) has for matrix products, one instruction a function: barriers in shared memory
 * (mbarrier), the copy engine (TMA), products of a warpgroup of 128 threads (wgmma). The host's part describes matrices
 * to the copy engine. What each instruction means is in the PTX manual under its name. */
#ifndef CMM_CUDA_WGMMA_CUH
#define CMM_CUDA_WGMMA_CUH

#include <cuda.h> /* types alone: no driver library is linked */

#include "params.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define CMM_HAS_WGMMA 1
#else
#define CMM_HAS_WGMMA 0
#endif

#if CMM_HAS_WGMMA

__device__ inline uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* ---- clusters and barriers ------------------------------------------------------------------------------------------- */

__device__ inline uint32_t cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* Every thread of the cluster's blocks; what they wrote to shared memory is seen after it. */
__device__ inline void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ inline void barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ inline void barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Arrive, and tell the barrier how many bytes the copy engine will bring before its phase is over. */
__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Arrive at the barrier of the same address in a block of the cluster. Neither it nor the wait orders plain reads and
 * writes beyond the block: that would cost a fence of the whole GPU each, and the slots see copies and products alone. */
__device__ inline void barrier_arrive_at(uint32_t barrier, uint32_t rank)
{
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* ---- the copy engine ------------------------------------------------------------------------------------------------- */

__device__ inline void prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Bring the box that begins at a column and a row to shared memory. */
__device__ inline void load_box(uint32_t to, const CUtensorMap *map, uint32_t barrier, int column, int row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}

/* The same, to the same address in the blocks of the cluster whose bits are set. */
__device__ inline void load_box_to_all(uint32_t to, const CUtensorMap *map, uint32_t barrier, int column, int row,
                                       uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;"
                 ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
                 : "memory");
}

/* What the kernel before wrote by plain stores, and the copy engine is about to read. */
__device__ inline void fence_for_copies()
{
    asm volatile("fence.proxy.async;" ::: "memory");
}

/* ---- products -------------------------------------------------------------------------------------------------------- */

/* Where an operand lies: rows of 128 bytes, swizzled by the copy engine, in groups of 8 that are `group` bytes apart; if
 * its rows are what is summed over, blocks of 64 columns are `block` bytes apart. */
__device__ inline uint64_t operand(uint32_t address, uint32_t group, uint32_t block)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(block >> 4) << 16 | (uint64_t)(group >> 4) << 32 |
           (uint64_t)1 << 62;
}

__device__ inline void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Wait until at most so many of the committed groups are not done. */
template <int PENDING> __device__ inline void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

template <int REGISTERS> __device__ inline void registers_less()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> __device__ inline void registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#define CMM_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
                  "+f"(d[i + 6]), "+f"(d[i + 7])
#define CMM_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CMM_D28 CMM_D8(0), CMM_D8(8), CMM_D8(16), CMM_D4(24)
#define CMM_D32 CMM_D28, CMM_D4(28)
#define CMM_D56 CMM_D32, CMM_D8(32), CMM_D8(40), CMM_D8(48)
#define CMM_D60 CMM_D56, CMM_D4(56)
#define CMM_D64 CMM_D56, CMM_D8(56)
#define CMM_D96 CMM_D64, CMM_D8(64), CMM_D8(72), CMM_D8(80), CMM_D8(88)
#define CMM_D112 CMM_D96, CMM_D8(96), CMM_D8(104)
#define CMM_D120 CMM_D112, CMM_D8(112)
#define CMM_D124 CMM_D120, CMM_D4(120)
#define CMM_D128 CMM_D120, CMM_D8(120)
#define CMM_T28 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27"
#define CMM_T32 CMM_T28 ",%28,%29,%30,%31"
#define CMM_T56                                                                                                        \
    CMM_T32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55"
#define CMM_T60 CMM_T56 ",%56,%57,%58,%59"
#define CMM_T64 CMM_T60 ",%60,%61,%62,%63"
#define CMM_T96                                                                                                        \
    CMM_T64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,"    \
            "%89,%90,%91,%92,%93,%94,%95"
#define CMM_T112 CMM_T96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define CMM_T120 CMM_T112 ",%112,%113,%114,%115,%116,%117,%118,%119"
#define CMM_T124 CMM_T120 ",%120,%121,%122,%123"
#define CMM_T128 CMM_T124 ",%124,%125,%126,%127"

/* d, 64 x N in the registers of a warpgroup, = a b, or += where add is not 0; 16 is what is summed over. BY_ROWS: so lie
 * the rows of b, else its columns. */
template <typename T, int N, int BY_ROWS> struct products;
#define CMM_PRODUCTS(T, TYPE, N, COUNT, A, B, ADD, ROWS)                                                      \
    template <int BY_ROWS> struct products<T, N, BY_ROWS> {                                                    \
        static __device__ __forceinline__ void add(float (&d)[COUNT], uint64_t a, uint64_t b, int add)         \
        {                                                                                                      \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                                      \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" CMM_T##COUNT "}, " \
                         A ", " B ", p, 1, 1, 0, " ROWS ";\n}"                                                 \
                         : CMM_D##COUNT                                                                        \
                         : "l"(a), "l"(b), "r"(add), "n"(BY_ROWS));                                            \
        }                                                                                                      \
    }
#define CMM_PRODUCTS_OF(T, TYPE)                                              \
    CMM_PRODUCTS(T, TYPE, 56, 28, "%28", "%29", "%30", "%31");                 \
    CMM_PRODUCTS(T, TYPE, 64, 32, "%32", "%33", "%34", "%35");                 \
    CMM_PRODUCTS(T, TYPE, 112, 56, "%56", "%57", "%58", "%59");                \
    CMM_PRODUCTS(T, TYPE, 120, 60, "%60", "%61", "%62", "%63");                \
    CMM_PRODUCTS(T, TYPE, 128, 64, "%64", "%65", "%66", "%67");                \
    CMM_PRODUCTS(T, TYPE, 192, 96, "%96", "%97", "%98", "%99");                \
    CMM_PRODUCTS(T, TYPE, 224, 112, "%112", "%113", "%114", "%115");           \
    CMM_PRODUCTS(T, TYPE, 240, 120, "%120", "%121", "%122", "%123");           \
    CMM_PRODUCTS(T, TYPE, 248, 124, "%124", "%125", "%126", "%127");           \
    CMM_PRODUCTS(T, TYPE, 256, 128, "%128", "%129", "%130", "%131")
CMM_PRODUCTS_OF(__nv_bfloat16, "bf16");
CMM_PRODUCTS_OF(__half, "f16");

#endif

/* ---- the host's side --------------------------------------------------------------------------------------------------- */

/* Describe a matrix of 16-bit numbers, rows `pitch` elements apart, to the copy engine, which brings boxes of 64 columns
 * and 64 rows. What lies outside the matrix is 0. Returns whether the driver took it. */
static inline int describe(CUtensorMap *map, int32_t dtype, const void *start, int64_t columns, int64_t rows,
                           int64_t pitch)
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
#else
    if (cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found) != cudaSuccess ||
#endif
        found != cudaDriverEntryPointSuccess)
        return 0;
    const cuuint64_t sizes[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitches[1] = {(cuuint64_t)pitch * 2};
    const cuuint32_t box[2] = {64, 64}, steps[2] = {1, 1};
    return ((decltype(&cuTensorMapEncodeTiled))function)(
               map, dtype == CMM_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
               (void *)start, sizes, pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#endif
