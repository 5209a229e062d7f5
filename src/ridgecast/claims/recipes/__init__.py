"""Recipes: how each work's figures are recomputed; a family of works a module.

Each recipe is a function without arguments that returns findings (`claims.verdict`). It asks the
same models as any user, sweeps the parameters that the source leaves open, and carries no constant
of its own but what the source states or another source measured, cited beside it.
"""

from __future__ import annotations

__all__ = ["RECIPES"]

# id of the work -> "module:function" (one literal dict, loaded on first use)
RECIPES: dict[str, str] = {
    "attention-io-lower-bound": "attention:io_lower_bound",
    "faster-neighborhood-attention": "attention:faster_neighborhood_attention",
    "flashattention": "attention:flashattention",
    "flashattention-2": "attention:flashattention_2",
    "lightning-attention": "attention:lightning_attention",
    "lightning-attention-2": "attention:lightning_attention_2",
    "minference": "attention:minference",
    "tokenring": "attention:tokenring",
    "vattention": "attention:vattention",
    "convbn-tune-mode": "convolution:convbn_tune_mode",
    "fast-model-scaling": "convolution:fast_model_scaling",
    "flashbutterfly": "convolution:flashbutterfly",
    "im2win": "convolution:im2win",
    "gcn-zero-copy": "graph:gcn_zero_copy",
    "pytorch-direct": "graph:pytorch_direct",
    "smash-spgemm": "graph:smash_spgemm",
    "apple-silicon-llm": "hardware:apple_silicon",
    "cross-he-tpu": "hardware:cross_he_tpu",
    "edgecim": "hardware:edgecim",
    "flightllm": "hardware:flightllm",
    "fusemax": "hardware:fusemax",
    "mamba2-jax": "hardware:mamba2_jax",
    "neupims": "hardware:neupims",
    "pim-gpt": "hardware:pim_gpt",
    "sn40l-coe": "hardware:sn40l",
    "waferllm": "hardware:waferllm",
    "flashdecoding-pp": "kernels:flashdecoding_pp",
    "flashrnn": "kernels:flashrnn",
    "flashsvd": "kernels:flashsvd",
    "fused-kernel-library": "kernels:fused_kernel_library",
    "gpperf": "kernels:gpperf",
    "scaling-dora": "kernels:scaling_dora",
    "skip-cpu-gpu-coupled": "kernels:skip_coupled",
    "tempi": "kernels:tempi",
    "two-pass-softmax": "kernels:two_pass_softmax",
    "warpcore": "kernels:warpcore",
    "sonicmoe": "moe:sonicmoe",
    "flops-to-footprints": "planning:flops_to_footprints",
    "melange": "planning:melange",
    "bfp-outlier-kv": "quantisation:bfp_outlier_kv",
    "bipolar-int-ap-gemm": "quantisation:bipolar_int",
    "cats": "quantisation:cats",
    "comet-w4a4kv4": "quantisation:comet",
    "dgq": "quantisation:dgq",
    "fast-2bit-llm": "quantisation:fast_2bit",
    "flash-llm": "quantisation:flash_llm",
    "gqsa": "quantisation:gqsa",
    "lut-gemm": "quantisation:lut_gemm",
    "marlin": "quantisation:marlin",
    "rag-embedding-quant": "quantisation:rag_embedding_quant",
    "turbomind-mixed-precision": "quantisation:turbomind",
    "4dgs-dynamic": "rendering:four_d_gaussians",
    "dvgo": "rendering:dvgo",
    "ges": "rendering:ges",
    "gsgan": "rendering:gsgan",
    "ngpc": "rendering:ngpc",
    "gpusq-vit": "vision:gpusq_vit",
    "i-vit": "vision:i_vit",
    "lpvit": "vision:lpvit",
}
