// What Python calls through ctypes; FUNCTION is the kernel. Each returns a cudaError_t.

#include <cuda_runtime.h>

extern "C" int ridgecast_launch(const int *groups, const int *threads, const int *sizes,
                                const void *a, const void *b, void *c, void *stream) {
    FUNCTION<<<dim3(groups[0], groups[1], groups[2]), dim3(threads[0], threads[1]), 0,
               (cudaStream_t)stream>>>(sizes[0], sizes[1], sizes[2], (const REAL *)a,
                                       (const REAL *)b, (REAL *)c);
    return (int)cudaGetLastError();
}

// blocks that fit on one SM at once, registers per thread, static shared and spilt bytes
extern "C" int ridgecast_resources(const int threads, int *out) {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, FUNCTION);
    if (error != cudaSuccess) return (int)error;
    out[1] = attributes.numRegs;
    out[2] = (int)attributes.sharedSizeBytes;
    out[3] = (int)attributes.localSizeBytes;
    return (int)cudaOccupancyMaxActiveBlocksPerMultiprocessor(&out[0], FUNCTION, threads, 0);
}

extern "C" const char *ridgecast_error(const int code) {
    return cudaGetErrorString((cudaError_t)code);
}
