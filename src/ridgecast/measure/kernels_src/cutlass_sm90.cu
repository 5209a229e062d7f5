// Warp-specialised products for sm_90: TMA loads, warp-group matrix instructions, clusters.
//
// Pingpong: two warp groups work on a tile each. Cooperative: both work on the same tile.
// The stream-K scheduler also splits the k loop into equal parts (split > 1).

#include "cute/tensor.hpp"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"

namespace ridgecast {

template <class Element, class LayoutA, class LayoutB, class Out, int tile_m, int tile_n,
          int tile_k, int cluster_m, int cluster_n, int stages, class MainSchedule,
          class EpilogueSchedule, class Scheduler>
struct Sm90 {
  using Blocks = cute::Shape<cute::Int<tile_m>, cute::Int<tile_n>, cute::Int<tile_k>>;
  using Cluster = cute::Shape<cute::Int<cluster_m>, cute::Int<cluster_n>, cute::_1>;
  using RowMajor = cutlass::layout::RowMajor;
  static constexpr int align = 16 / sizeof(Element);
  static constexpr int align_out = 16 / sizeof(Out);
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Blocks, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, align_out,
      Out, RowMajor, align_out, EpilogueSchedule>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, LayoutA, align, Element,
      LayoutB, align, float, Blocks, Cluster, cutlass::gemm::collective::StageCount<stages>,
      MainSchedule>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop,
                                                      Epilogue, Scheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Arguments = typename Gemm::Arguments;
  static constexpr bool splits =
      cute::is_same_v<Scheduler, cutlass::gemm::StreamKScheduler>;

  Gemm gemm;
  Arguments arguments;
  void* workspace = nullptr;

  // Stride of a packed matrix: the constant 1 stays, the other extent is filled in, batches are 0.
  template <class Stride>
  static Stride packed(int rows, int columns) {
    Stride stride{};
    if constexpr (cute::is_static_v<cute::tuple_element_t<0, Stride>>) {
      cute::get<1>(stride) = rows;
    } else {
      cute::get<0>(stride) = columns;
    }
    return stride;
  }

  static Arguments make(void* a, void* b, void* d, int m, int n, int k, int split, int swizzle,
                        int stream_k) {
    int device = 0;
    cudaGetDevice(&device);
    Arguments made{cutlass::gemm::GemmUniversalMode::kGemm,
                   {m, n, k, 1},
                   {static_cast<Element const*>(a), packed<typename Kernel::StrideA>(m, k),
                    static_cast<Element const*>(b), packed<typename Kernel::StrideB>(n, k)},
                   {{1.f, 0.f},
                    nullptr,
                    {},
                    static_cast<Out*>(d),
                    packed<typename Kernel::StrideD>(m, n)}};
    made.hw_info =
        cutlass::KernelHardwareInfo::make_kernel_hardware_info<Kernel>(device);
    made.scheduler.max_swizzle_size = swizzle;
    if constexpr (splits) {
      using Mode = cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamKParams::
          DecompositionMode;
      made.scheduler.splits = split;
      made.scheduler.decomposition_mode = stream_k ? Mode::StreamK
                                          : split > 1 ? Mode::SplitK
                                                      : Mode::DataParallel;
    }
    return made;
  }

  static long long workspace_bytes(int m, int n, int k, int split, int swizzle, int stream_k) {
    auto made = make(nullptr, nullptr, nullptr, m, n, k, split, swizzle, stream_k);
    return static_cast<long long>(Gemm::get_workspace_size(made));
  }

  int prepare(void* a, void* b, void* d, int m, int n, int k, int split, int swizzle,
              int stream_k, void* given, cudaStream_t stream) {
    arguments = make(a, b, d, m, n, k, split, swizzle, stream_k);
    workspace = given;
    auto status = Gemm::can_implement(arguments);
    if (status == cutlass::Status::kSuccess) status = gemm.initialize(arguments, given, stream);
    return static_cast<int>(status);
  }

  int run(cudaStream_t stream) {
    if constexpr (splits) {  // its barriers count up and must start at zero
      auto status = Kernel::initialize_workspace(arguments, workspace, stream);
      if (status != cutlass::Status::kSuccess) return static_cast<int>(status);
    }
    return static_cast<int>(gemm.run(stream));
  }

  static int facts(long long* out) {
    return fill_facts(out, reinterpret_cast<void const*>(&cutlass::device_kernel<Kernel>),
                      Kernel::MaxThreadsPerBlock, Kernel::SharedStorageSize,
                      Mainloop::DispatchPolicy::Stages);
  }
};

}  // namespace ridgecast
