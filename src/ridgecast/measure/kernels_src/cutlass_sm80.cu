// Products for sm_80 and later: warp tiles on the tensor cores (mma.sync) or on the SIMT lanes,
// a multistage pipeline of asynchronous copies, split-K in a row (a semaphore a tile) or stream-K.

#include "cutlass/epilogue/thread/linear_combination.h"
#include "cutlass/gemm/device/gemm_universal.h"
#include "cutlass/gemm/threadblock/threadblock_swizzle.h"
#include "cutlass/gemm/threadblock/threadblock_swizzle_streamk.h"

namespace ridgecast {

template <class Element, class LayoutA, class LayoutB, class Out, class Accumulator,
          class OpClass, class Blocks, class Warps, class Instruction, int stages, int align,
          int align_out, class Swizzle, class Operator>
struct Sm80 {
  using RowMajor = cutlass::layout::RowMajor;
  using Epilogue =
      cutlass::epilogue::thread::LinearCombination<Out, align_out, Accumulator, Accumulator>;
  using Gemm =
      cutlass::gemm::device::GemmUniversal<Element, LayoutA, Element, LayoutB, Out, RowMajor,
                                           Accumulator, OpClass, cutlass::arch::Sm80, Blocks,
                                           Warps, Instruction, Epilogue, Swizzle, stages, align,
                                           align, Operator>;
  using Kernel = typename Gemm::GemmKernel;
  using Arguments = typename Gemm::Arguments;

  Gemm gemm;

  static Arguments make(void* a, void* b, void* d, int m, int n, int k, int split) {
    bool const rows_a = cutlass::platform::is_same<LayoutA, RowMajor>::value;
    bool const rows_b = cutlass::platform::is_same<LayoutB, RowMajor>::value;
    using Scalar = typename Epilogue::ElementCompute;
    return Arguments(cutlass::gemm::GemmUniversalMode::kGemm, {m, n, k}, split,
                     {Scalar(1), Scalar(0)}, a, b, d, d, int64_t(0), int64_t(0), int64_t(0),
                     int64_t(0), int64_t(rows_a ? k : m), int64_t(rows_b ? n : k), int64_t(n),
                     int64_t(n));
  }

  static long long workspace_bytes(int m, int n, int k, int split, int, int) {
    return static_cast<long long>(
        Gemm::get_workspace_size(make(nullptr, nullptr, nullptr, m, n, k, split)));
  }

  int prepare(void* a, void* b, void* d, int m, int n, int k, int split, int, int, void* given,
              cudaStream_t stream) {
    auto arguments = make(a, b, d, m, n, k, split);
    auto status = Gemm::can_implement(arguments);
    if (status == cutlass::Status::kSuccess) status = gemm.initialize(arguments, given, stream);
    return static_cast<int>(status);
  }

  int run(cudaStream_t stream) { return static_cast<int>(gemm.run(stream)); }

  static int facts(long long* out) {
    return fill_facts(out, reinterpret_cast<void const*>(&cutlass::Kernel2<Kernel>),
                      Kernel::kThreadCount, int(sizeof(typename Kernel::SharedStorage)), stages);
  }
};

}  // namespace ridgecast
