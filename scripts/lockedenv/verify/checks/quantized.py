"""bitsandbytes: the library it loaded, and its arithmetic against full precision."""

from __future__ import annotations

from lockedenv.verify.checks import check_each_gpu, relative, within
from lockedenv.verify.results import Result, failed


@check_each_gpu("bitsandbytes", "on each GPU: its library is for torch's CUDA; nf4, int8, a 4-bit layer, 8-bit Adam are right",
                remedy="reinstall it: scripts/post_create.sh; if BNB_CUDA_VERSION is set, unset it")  # fmt: skip
def bitsandbytes(device: str) -> Result:
    import bitsandbytes as bnb
    import bitsandbytes.functional as functional
    import torch
    from bitsandbytes import cextension

    library = getattr(getattr(cextension.lib, "_lib", None), "_name", "none").rsplit("/", 1)[-1]
    wanted = f"cuda{str(torch.version.cuda).replace('.', '')}" if device == "cuda" else "cpu"
    if wanted not in library:
        return failed(f"loaded {library}, torch needs libbitsandbytes_{wanted}.so", "unset BNB_CUDA_VERSION")
    torch.manual_seed(0)
    errors = {}
    # On normally distributed weights nf4 is off by 9.2 % and int8 by row by 0.7 % (root mean square); the bounds leave
    # a tenth and a half more. https://arxiv.org/abs/2305.14314, https://arxiv.org/abs/2208.07339
    x = torch.randn(256, 256, device=device)
    four = functional.dequantize_4bit(*functional.quantize_4bit(x, quant_type="nf4"))
    errors["nf4"] = (relative(four, x), 0.102)
    rows, scale, _ = functional.int8_vectorwise_quant(x.half())
    errors["int8"] = (relative(functional.int8_vectorwise_dequant(rows, scale), x), 0.011)
    # The 4-bit layer against the same layer with the weights that its codes stand for, in float32.
    layer = bnb.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to(device)
    weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().reshape(64, 128)
    inputs = torch.randn(16, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    out = layer(inputs)
    out.float().sum().backward()
    assert inputs.grad is not None
    errors["4-bit layer"] = (relative(out.float(), inputs.detach().float() @ weight.T), 2.0**-6)
    errors["its gradient"] = (relative(inputs.grad.float(), weight.sum(0).expand(16, -1)), 2.0**-6)
    start, gradient = torch.randn(8192, device=device), torch.randn(8192, device=device)
    ends = []
    for optimizer, options in ((bnb.optim.Adam8bit, {"min_8bit_size": 0}), (torch.optim.Adam, {})):
        parameter = torch.nn.Parameter(start.clone())
        steps = optimizer([parameter], lr=1e-2, **options)
        parameter.grad = gradient.clone()
        steps.step()
        ends.append(parameter.detach() - start)
        if options and steps.state[parameter]["state1"].dtype != torch.uint8:
            return failed("Adam8bit keeps its state in full precision", "reinstall bitsandbytes: scripts/post_create.sh")
    errors["8-bit Adam step"] = (relative(ends[0], ends[1]), 0.02)
    return within(errors, library, "the kernels compute wrongly here: take another pod")
