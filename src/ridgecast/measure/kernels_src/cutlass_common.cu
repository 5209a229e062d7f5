// What every CUTLASS product has in common: its C interface and what the compiler made of it.
//
//   NAME_workspace(m, n, k, split, swizzle, stream_k)         bytes that a run needs beside D
//   NAME_make(a, b, d, m, n, k, split, swizzle, stream_k, workspace, stream, &status)
//                                                             a prepared product, null if refused
//   NAME_run(product, stream)                                 D = A B; 0 or CUTLASS's status
//   NAME_free(product)
//   NAME_facts(out[6])     registers, local bytes, shared bytes, threads, blocks per SM, stages
//
// Operands are packed. Preparing is outside what is timed, as it is for a library; run() launches
// all that one product needs.

#include <cuda_runtime.h>

#include <cstdint>
#include <new>

#include "cutlass/cutlass.h"

namespace ridgecast {

inline int fill_facts(long long* out, void const* kernel, int threads, int shared, int stages) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
    cudaGetLastError();
    return 1;
  }
  if (shared >= (48 << 10)) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  }
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared);
  cudaGetLastError();
  out[0] = attributes.numRegs;
  out[1] = static_cast<long long>(attributes.localSizeBytes);
  out[2] = static_cast<long long>(attributes.sharedSizeBytes) + shared;
  out[3] = threads;
  out[4] = blocks;
  out[5] = stages;
  return 0;
}

}  // namespace ridgecast

#define RIDGECAST_PRODUCT(NAME, ...)                                                            \
  using NAME##_product = __VA_ARGS__;                                                           \
  extern "C" long long NAME##_workspace(int m, int n, int k, int split, int swizzle,            \
                                        int stream_k) {                                         \
    return NAME##_product::workspace_bytes(m, n, k, split, swizzle, stream_k);                  \
  }                                                                                             \
  extern "C" void* NAME##_make(void* a, void* b, void* d, int m, int n, int k, int split,       \
                               int swizzle, int stream_k, void* workspace, void* stream,        \
                               int* status) {                                                   \
    auto* made = new (std::nothrow) NAME##_product();                                           \
    *status = made == nullptr ? -1                                                              \
                              : made->prepare(a, b, d, m, n, k, split, swizzle, stream_k,       \
                                              workspace, static_cast<cudaStream_t>(stream));    \
    if (*status == 0) return made;                                                              \
    delete made;                                                                                \
    return nullptr;                                                                             \
  }                                                                                             \
  extern "C" int NAME##_run(void* made, void* stream) {                                         \
    return static_cast<NAME##_product*>(made)->run(static_cast<cudaStream_t>(stream));          \
  }                                                                                             \
  extern "C" void NAME##_free(void* made) { delete static_cast<NAME##_product*>(made); }        \
  extern "C" int NAME##_facts(long long* out) { return NAME##_product::facts(out); }
