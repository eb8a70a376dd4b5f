"""What programs cost: FLOPs of jaxprs, and bytes of optimised HLO written out by hand."""

import jax
import jax.numpy as jnp

from proxy_jax.stages import program_costs

HLO = """\
HloModule step

%body (p: (s32[], f32[4,8], bf16[3,8,8])) -> (s32[], f32[4,8], bf16[3,8,8]) {
  %p = (s32[], f32[4,8]{1,0:T(4,128)}, bf16[3,8,8]) parameter(0)
  %x = f32[4,8]{1,0:T(4,128)} get-tuple-element(%p), index=1
  %w = bf16[2,8]{1,0} fusion(%p), kind=kLoop, calls=%pick
  %whole = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%w), channel_id=1, dimensions={0}, metadata={op_name="jit(f)/while/dot" stack_frame_id=1}
  %y = f32[4,8]{1,0} convolution(%x, %whole), dim_labels=bf_io->bf
  ROOT %sum = (f32[4,8]{1,0}, f32[]) all-reduce(%y, %y), channel_id=2, to_apply=%add
}

%condition (p: (s32[], f32[4,8], bf16[3,8,8])) -> pred[] {
  %p = (s32[], f32[4,8], bf16[3,8,8]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %end = s32[]{:T(128)} constant(4)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

%all-reduce-scatter.1 (g: f32[8,8]) -> f32[2,8] {
  %g = f32[8,8]{1,0} parameter(0)
  %all-reduce.9 = f32[8,8]{1,0} all-reduce(%g), channel_id=3, to_apply=%add
  ROOT %own = f32[2,8]{1,0} dynamic-slice(%all-reduce.9)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %counter = s32[]{:T(128)} copy(%one)
  %carry = (s32[], f32[4,8], bf16[3,8,8]) tuple(%counter, %a, /*index=2*/%a)
  %loop = (s32[], f32[4,8], bf16[3,8,8]) while(%carry), condition=%condition, body=%body
  %g = f32[8,8]{1,0} broadcast(%a)
  %part = f32[2,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %again = f32[2,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %sent = (u8[16]{0}, u8[16]{0}, u32[]{:S(2)}) collective-permute-start(%part), channel_id=4
  %token = token[] after-all()
  %away = (f32[2,8]{1,0}, u32[], token[]) send(%part, %token), channel_id=5, frontend_attributes={_name="xla_megascale_runtime"}
  %local = (f32[2,8]{1,0}, u32[], token[]) send(%part, %token), channel_id=6
  ROOT %out = f32[4,8]{1,0} custom-call(%a, %a), custom_call_target="tpu_custom_call"
}
"""


def test_bytes_are_counted_as_often_as_loops_run():
    found = {line.kind: (line.size, line.times, line.source) for line in program_costs.collectives(HLO)}
    assert found["all-gather"] == (8 * 8 * 2, 3, "jit(f)/while/dot")
    assert found["all-reduce"][:2] == (2 * 4 * 8 * 4, 3)
    assert found["reduce-scatter"][:2] == (8 * 8 * 4, 1)  # it stands in two fusions, being overlapped
    assert found["collective-permute"][:2] == (2 * 8 * 4, 1)
    assert found[program_costs.BETWEEN_SLICES][:2] == (2 * 8 * 4, 1)
    assert program_costs.by_kind(program_costs.collectives(HLO))["all-gather"] == 3 * 128
    product, kernel = 4 * 8 * 4 + 8 * 8 * 2 + 4 * 8 * 4, 3 * 4 * 8 * 4
    assert program_costs.moved(HLO) == 3 * product + kernel


def test_flops_of_scans_branches_and_convolutions():
    w, x, image = jnp.zeros((5, 8, 8)), jnp.zeros((4, 8)), jnp.zeros((2, 6, 6, 3))

    def product(x, w):
        return jnp.dot(x, w, precision="highest")

    def run(x, w, image):
        x, _ = jax.lax.scan(jax.checkpoint(lambda x, w: (product(x, w), None)), x, w)
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ w[0] @ w[1], lambda x: x @ w[2], x)
        return x.sum() + jax.lax.conv_general_dilated(image, jnp.ones((3, 3, 3, 7)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()

    one, convolution = 2 * 4 * 8 * 8, 2 * (2 * 6 * 6 * 7) * (3 * 3 * 3)
    flops, passes = program_costs.flops(jax.make_jaxpr(run)(x, w, image))
    assert flops == 7 * one + convolution and passes == flops + 5 * 5 * one
    gradient, _ = program_costs.flops(jax.make_jaxpr(jax.grad(lambda x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0].sum()))(x))
    assert gradient == 2 * 5 * one


def test_what_a_program_too_large_would_need():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.35G of 15.75G hbm. Exceeded hbm capacity by 4.60G.\nmore"
    assert program_costs.exhausted(message) == "needs 20.35G of 15.75G"
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (232.93G) exceeds available HBM (15.75G)."
    assert program_costs.exhausted(message) == "needs 232.93G of 15.75G"
