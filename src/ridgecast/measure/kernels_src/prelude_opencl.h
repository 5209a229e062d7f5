// The words of kernels_src for OpenCL C 1.2 and later; prelude_cuda.h has the same words for CUDA.
//
// REAL is the stored type, ACC the one that sums are kept in (both are defined in front of this
// text, as are the kernel's own parameters).

#if REAL_BITS == 64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#elif REAL_BITS == 16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif

#define KERNEL(x, y) __kernel __attribute__((reqd_work_group_size(x, y, 1))) void
#define DEVICE static inline
#define GLOBAL __global
#define SHARED __local
#define LOCAL __local
#define RESTRICT restrict
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)

#define GROUP_X ((int)get_group_id(0))
#define GROUP_Y ((int)get_group_id(1))
#define GROUP_Z ((int)get_group_id(2))
#define GROUPS_X ((int)get_num_groups(0))
#define LOCAL_X ((int)get_local_id(0))
#define LOCAL_Y ((int)get_local_id(1))

#define TO_ACC(x) ((ACC)(x))
#define TO_REAL(x) ((REAL)(x))

// `width` stored values that are loaded at once, with elements .s[i]
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define VECTOR(name, width) \
    typedef union {         \
        width##_NATIVE v;   \
        REAL s[width];      \
    } name

// 16 bytes, as the micro-benchmarks move them
typedef float4 word;
#define WORD_ADD(p, q) ((p) + (q))
#define WORD_SCALE_ADD(f, p, q) ((f) * (p) + (q))
#define WORD_SUM(p) ((p).x + (p).y + (p).z + (p).w)
#define WORD_ZERO ((float4)(0.0f))
#define LOAD_BELOW_L1(pointer, index) ((pointer)[index])
