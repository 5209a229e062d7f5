// The words of kernels_src for CUDA C++; prelude_opencl.h has the same words for OpenCL C.
//
// REAL is the stored type, ACC the one that sums are kept in (both are defined in front of this
// text, as are the kernel's own parameters).

#if REAL_BITS == 16
#include <cuda_fp16.h>
#endif

#define KERNEL(x, y) extern "C" __global__ __launch_bounds__((x) * (y)) void
#define DEVICE static __device__ __forceinline__
#define GLOBAL
#define SHARED __shared__
#define LOCAL
#define RESTRICT __restrict__
#define BARRIER() __syncthreads()

#define GROUP_X ((int)blockIdx.x)
#define GROUP_Y ((int)blockIdx.y)
#define GROUP_Z ((int)blockIdx.z)
#define GROUPS_X ((int)gridDim.x)
#define LOCAL_X ((int)threadIdx.x)
#define LOCAL_Y ((int)threadIdx.y)

#if REAL_BITS == 16
#define TO_ACC(x) __half2float(x)
#define TO_REAL(x) __float2half_rn(x)
#else
#define TO_ACC(x) ((ACC)(x))
#define TO_REAL(x) ((REAL)(x))
#endif

// `width` stored values that are loaded at once, with elements .s[i]; a load takes 16 bytes at most
template <int bytes>
struct alignment_of {
    static constexpr int value = bytes > 16 ? 16 : bytes;
};
#define VECTOR(name, width)                                         \
    struct alignas(alignment_of<sizeof(REAL) * width>::value) name { \
        REAL s[width];                                               \
    }

// 16 bytes, as the micro-benchmarks move them
typedef float4 word;
#define WORD_ADD(p, q) make_float4((p).x + (q).x, (p).y + (q).y, (p).z + (q).z, (p).w + (q).w)
#define WORD_SCALE_ADD(f, p, q) \
    make_float4((f) * (p).x + (q).x, (f) * (p).y + (q).y, (f) * (p).z + (q).z, (f) * (p).w + (q).w)
#define WORD_SUM(p) ((p).x + (p).y + (p).z + (p).w)
#define WORD_ZERO make_float4(0.0f, 0.0f, 0.0f, 0.0f)
#define LOAD_BELOW_L1(pointer, index) __ldcg((pointer) + (index))
