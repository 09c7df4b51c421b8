"""What a program's text says: loops, groups, fusions of TPUs, slices."""

import pytest

from dnt.rehearsal import hlo

FROM = 'metadata={op_name="jit(f)/transpose(jvp(Net))/dense/dot_general"}'
LOOP = """HloModule jit_train_steps, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  %index = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%index, %limit), direction=LT
}

%inner (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %index.1 = s32[] get-tuple-element(%p.1), index=0
  %value = f32[8]{0} get-tuple-element(%p.1), index=1
  %all-reduce = f32[8]{0} all-reduce(%value), channel_id=1, replica_groups=GROUPS, to_apply=%add, FROM
  ROOT %next = (s32[], f32[8]{0}) tuple(%index.1, %all-reduce)
}

%outer_condition (p.2: (s32[], s32[], f32[8])) -> pred[] {
  %p.2 = (s32[], s32[], f32[8]{0}) parameter(0)
  %index.2 = s32[] get-tuple-element(%p.2), index=0
  %count = s32[] get-tuple-element(%p.2), index=1
  ROOT %less.1 = pred[] compare(%index.2, %count), direction=LT
}

%outer (p.3: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %p.3 = (s32[], s32[], f32[8]{0}) parameter(0)
  %begin = (s32[], f32[8]{0}) tuple(%p.3, %p.3)
  %while.1 = (s32[], f32[8]{0}) while(%begin), condition=%inner_condition, body=%innerKNOWN
  ROOT %result = (s32[], s32[], f32[8]{0}) tuple(%while.1)
}

ENTRY %main (a: f32[8], n: s32[]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %n = s32[] parameter(1)
  %first = (s32[], /*index=1*/s32[], f32[8]{0}) tuple(%n, %n, %a)
  %while = (s32[], s32[], f32[8]{0}) while(%first), condition=%outer_condition, body=%outer
  ROOT %out = f32[8]{0} get-tuple-element(%while), index=2
}
"""


def loop(groups='[2,4]<=[8]', known=''):
  return hlo.measure(LOOP.replace('GROUPS', groups).replace('KNOWN', known).replace('FROM', FROM), 8)


def test_a_loop_with_a_limit_counts_its_turns_and_one_over_the_steps_once():
  (found,) = loop().collectives
  assert (found.kind, found.times, found.bytes) == ('all-reduce', 5, {hlo.GRADIENTS: 32})


def test_a_number_of_turns_that_xla_knows_counts():
  known = ', backend_config={"known_trip_count":{"n":"7"}}'
  assert loop(known=known).collectives[0].times == 7


@pytest.mark.parametrize(
  ('groups', 'size', 'span'),
  [
    ('[2,4]<=[8]', 4, 4),
    ('[4,2]<=[2,4]T(1,0)', 2, 8),
    ('{{0,1},{2,3},{4,5},{6,7}}', 2, 2),
    ('{{0,4},{1,5},{2,6},{3,7}}', 2, 5),
    ("mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_1'}", 4, 4),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 2, 8),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8, 8),
    ("mesh['axis_0'=2,'axis_1'=4], device_ids=([2,4]T(1,0)) {'axis_1'}", 4, 8),
    ("mesh['axis_0'=8] {'axis_0':(1)4}", 4, 4),
    ('{}', 8, 8),
  ],
)
def test_the_chips_of_a_group_are_counted(groups, size, span):
  (found,) = loop(groups).collectives
  assert (found.group, found.span) == (size, span)
  assert found.sent == pytest.approx(2 * 32 * (size - 1) / size)


TPU = """HloModule tpu

%start (q: bf16[4,8]) -> bf16[4,32] {
  %q = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.1 = bf16[4,32]{1,0} all-gather(%q), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={1}
  ROOT %call.1 = bf16[4,32]{1,0} custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (q.1: bf16[4,8]) -> bf16[4,32] {
  %q.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[4,32]{1,0} all-gather(%q.1), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={1}
}

%scatter (q.2: f32[4,32]) -> f32[4,8] {
  %q.2 = f32[4,32]{1,0} parameter(0)
  %reduce = f32[4,32]{1,0} all-reduce(%q.2), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[4,8]{1,0} dynamic-slice(%reduce), dynamic_slice_sizes={4,8}
}

ENTRY %main (w: bf16[4,8], g: f32[4,32]) -> f32[4,8] {
  %w = bf16[4,8]{1,0} parameter(0)
  %g = f32[4,32]{1,0} parameter(1)
  %one = bf16[4,32]{1,0:S(1)} fusion(%w), kind=kCustom, calls=%start
  %two = bf16[4,32]{1,0:S(1)} fusion(%w), kind=kCustom, calls=%middle
  ROOT %three = f32[4,8]{1,0} fusion(%g), kind=kCustom, calls=%scatter, FROM
}
"""


def test_a_gather_across_fusions_of_a_tpu_counts_once_and_a_fused_scatter_is_one():
  gather, scatter = hlo.measure(TPU.replace('FROM', FROM), 4).collectives
  assert (gather.kind, gather.bytes, gather.group) == ('all-gather', {hlo.PARAMETERS: 4 * 32 * 2}, 4)
  assert (scatter.kind, scatter.bytes) == ('reduce-scatter', {hlo.GRADIENTS: 4 * 32 * 4})
  assert scatter.sent == pytest.approx(3 / 4 * 4 * 32 * 4)


SLICES = """HloModule slices

ENTRY %main (g: f32[4,32]) -> f32[4,32] {
  %g = f32[4,32]{1,0} parameter(0)
  %part = f32[4,8]{1,0} reduce-scatter(%g), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={1}, to_apply=%add
  %token = token[] after-all()
  %send = (f32[4,8]{1,0}, u32[], token[]) send(%part, %token), channel_id=2, x="xla_megascale_runtime"
  %recv = (f32[4,8]{1,0}, u32[], token[]) recv(%token), channel_id=3, x="xla_megascale_runtime"
  %recv-done = (f32[4,8]{1,0}, token[]) recv-done(%recv), channel_id=3
  %sum = f32[4,8]{1,0} get-tuple-element(%recv-done), index=0
  ROOT %whole = f32[4,32]{1,0} all-gather(%sum), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={1}
}
"""


def test_between_slices_a_chip_sends_its_part_of_the_gradient():
  scatter, send, gather = hlo.measure(SLICES, 8).collectives
  assert [each.kind for each in (scatter, send, gather)] == ['reduce-scatter', hlo.SEND, 'all-gather']
  assert [each.bytes for each in (scatter, send, gather)] == [{hlo.GRADIENTS: size} for size in (512, 128, 512)]
  assert send.sent == 128


TRAFFIC = """HloModule traffic

%row (images: u8[1000,32], place: s32[]) -> f32[32] {
  %images = u8[1000,32]{1,0} parameter(0)
  %place = s32[] parameter(1)
  %taken = u8[1,32]{1,0} dynamic-slice(%images, %place), dynamic_slice_sizes={1,32}
  ROOT %converted = f32[32]{0} convert(%taken)
}

%store (record: f32[1000], value: f32[1], place.1: s32[]) -> f32[1000] {
  %record = f32[1000]{0} parameter(0)
  %value = f32[1]{0} parameter(1)
  %place.1 = s32[] parameter(2)
  ROOT %updated = f32[1000]{0} dynamic-update-slice(%record, %value, %place.1)
}

ENTRY %main (data: u8[1000,32], at: s32[], old: f32[1000], new: f32[1]) -> f32[1000] {
  %data = u8[1000,32]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %old = f32[1000]{0} parameter(2)
  %new = f32[1]{0} parameter(3)
  %read = f32[32]{0} fusion(%data, %at), kind=kLoop, calls=%row
  %near = f32[32]{0:S(1)} negate(%read)
  ROOT %written = f32[1000]{0} fusion(%old, %new, %at), kind=kLoop, calls=%store
}
"""


def test_slices_move_their_own_bytes_and_fast_memory_none():
  read, negate, written = (32 + 4 + 4 * 32), 4 * 32, (4 + 4 + 4)
  assert hlo.measure(TRAFFIC, 1).bytes == read + negate + written
