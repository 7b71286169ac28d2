//! PTX on the emulator: what instructions compute, and what is found in a kernel that is wrong.

use margay_emulator::Emulator;
use margay_runtime::device::Fault;
use margay_runtime::gpu::{Driver, LaunchForm, Region};

/// Launches a kernel of one block on an input and an output of so many bytes, and returns the output.
fn run(ptx: &str, threads: usize, input: &[u8], output_bytes: usize) -> Result<Vec<u8>, String> {
    let emulator = Emulator::new(3);
    let kernel = emulator.load(ptx)?;
    let [from, to] = [input.len(), output_bytes].map(|bytes| emulator.allocate(bytes, false).unwrap());
    emulator.write(from, input).unwrap();
    let region = |address, bytes, written| Region { address, bytes, element: 4, written };
    let regions = [region(from, input.len(), false), region(to, output_bytes, true)];
    let stream = emulator.stream().unwrap();
    let form = LaunchForm { stream, step: 0, blocks: 1, threads, args: &[from, to], regions: &regions };
    // SAFETY: the emulator checks every access.
    match unsafe { kernel.launch(&form) } {
        Ok(()) => {}
        Err(Fault::Code(found)) => return Err(found),
        Err(other) => panic!("{other:?}"),
    }
    let mut output = vec![0; output_bytes];
    emulator.read(to, &mut output).unwrap();
    Ok(output)
}

/// A kernel with a body between the reading of its two parameters and its end.
fn kernel(body: &str) -> String {
    format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry kernel(
	.param .u64 .ptr .align 1 kernel_param_0,
	.param .u64 .ptr .align 1 kernel_param_1
)
.maxntid 64
{{
	.reg .b64 	%rd<9>;
	.shared .align 16 .b8 held[256];
	ld.param.b64 	%from, [kernel_param_0];
	ld.param.b64 	%to, [kernel_param_1];
{body}
	ret;
}}
"
    )
}

fn f(x: f32) -> u64 {
    x.to_bits().into()
}

fn low(x: i32) -> u64 {
    x.cast_unsigned().into()
}

#[test]
fn instructions_compute_what_their_document_says() {
    let almost = 1.0 + 2f32.powi(-12);
    let rows: &[(&str, u64, u64, u64)] = &[
        ("add.s32 %y, %a, %b", low(-1), 2, 1),
        ("sub.s64 %y, %a, %b", 1, 2, u64::MAX),
        ("mul.lo.s32 %y, %a, %b", low(-3), 5, low(-15)),
        ("mul.hi.u64 %y, %a, %b", u64::MAX, u64::MAX, u64::MAX - 1),
        ("mul.hi.s32 %y, %a, %b", low(-2), 3, low(-1)),
        ("mul.wide.s32 %y, %a, %b", low(-2), 3, (-6i64).cast_unsigned()),
        ("mad.wide.u32 %y, %a, %b, 5", 0xffff_ffff, 2, 0x2_0000_0003),
        ("mad.lo.s32 %y, %a, %b, -1", 7, 3, 20),
        ("div.s32 %y, %a, %b", low(-7), 2, low(-3)),
        ("rem.s32 %y, %a, %b", low(-7), 2, low(-1)),
        ("div.u32 %y, %a, %b", low(-7), 2, 0x7fff_fffc),
        ("shl.b32 %y, %a, %b", 1, 32, 0),
        ("shr.u32 %y, %a, %b", 0x8000_0000, 40, 0),
        ("shr.s32 %y, %a, %b", 0x8000_0000, 40, low(-1)),
        ("min.s32 %y, %a, %b", low(-1), 1, low(-1)),
        ("min.u32 %y, %a, %b", low(-1), 1, 1),
        ("not.b32 %y, %a", 1, 0, 0xffff_fffe),
        ("abs.s32 %y, %a", low(-5), 0, 5),
        ("prmt.b32 %y, %a, %b, 0x7531", 0x3322_1100, 0x7766_5544, 0x7755_3311),
        ("shf.l.wrap.b32 %y, %a, %b, 8", 0x1122_3344, 0x5566_7788, 0x6677_8811),
        ("shf.r.wrap.b32 %y, %a, %b, 8", 0x1122_3344, 0x5566_7788, 0x8811_2233),
        ("bfe.u32 %y, %a, 4, 8", 0x1234_5678, 0, 0x67),
        ("bfe.u32 %y, %a, 28, 8", 0x9234_5678, 0, 9),
        ("bfe.u32 %y, %a, 40, 8", 0x9234_5678, 0, 0),
        ("bfe.u32 %y, %a, 0, 64", 0x9234_5678, 0, 0x9234_5678),
        ("bfe.u64 %y, %a, 60, 8", 0x9234_5678_0000_0000, 0, 9),
        ("bfe.u64 %y, %a, 64, 1", 1 << 63, 0, 0),
        ("bfe.s32 %y, %a, 4, 8", 0x1234_5678, 0, 0x67),
        ("bfe.s32 %y, %a, 4, 7", 0x1234_5678, 0, low(-25)),
        ("bfe.s32 %y, %a, 4, 3", 0x1234_5678, 0, low(-1)),
        // Beyond the highest bit there is the sign.
        ("bfe.s32 %y, %a, 28, 8", 0x9234_5678, 0, low(-7)),
        ("bfe.s32 %y, %a, 28, 8", 0x7234_5678, 0, 7),
        ("bfe.s32 %y, %a, 32, 1", 0x8000_0000, 0, low(-1)),
        ("bfe.s32 %y, %a, 255, 255", 0x8000_0000, 0, low(-1)),
        ("bfe.s32 %y, %a, 255, 255", 0x7fff_ffff, 0, 0),
        ("bfe.s32 %y, %a, 0, 255", low(-5), 0, low(-5)),
        ("bfe.s32 %y, %a, 31, 0", low(-1), 0, 0),
        // Of both numbers the lowest 8 bits count.
        ("bfe.s32 %y, %a, %b, 4", 0x0000_00a0, 0x104, low(-6)),
        ("bfe.s32 %y, %a, 4, %b", 0x0000_00a0, 0x104, low(-6)),
        ("bfe.s32 %y, %a, 4, %b", 0x0000_00a0, 0x100, 0),
        ("bfe.s64 %y, %a, 36, 8", 0x0000_0f80_0000_0000, 0, (-8i64).cast_unsigned()),
        ("bfe.s64 %y, %a, 60, 8", 0x9234_5678_0000_0000, 0, (-7i64).cast_unsigned()),
        ("bfe.s64 %y, %a, 64, 1", 1 << 63, 0, u64::MAX),
        ("bfe.s64 %y, %a, 63, 0", u64::MAX, 0, 0),
        ("cvt.s64.s8 %y, %a", 0x80, 0, (-128i64).cast_unsigned()),
        ("cvt.u32.u64 %y, %a", 0x1_0000_0002, 0, 2),
        ("cvt.rn.f32.s32 %y, %a", low(-16_777_217), 0, f(-16_777_216.0)),
        ("cvt.rn.f32.u64 %y, %a", u64::MAX, 0, f(2f32.powi(64))),
        ("cvt.rzi.s32.f32 %y, %a", f(-3.7), 0, low(-3)),
        ("cvt.rzi.u32.f32 %y, %a", f(-1.0), 0, 0),
        ("cvt.rzi.s32.f32 %y, %a", f(3e9), 0, low(i32::MAX)),
        ("cvt.rzi.s32.f32 %y, %a", f(f32::NAN), 0, 0),
        ("cvt.rni.f32.f32 %y, %a", f(2.5), 0, f(2.0)),
        ("cvt.rmi.f32.f32 %y, %a", f(-2.5), 0, f(-3.0)),
        ("cvt.f64.f32 %y, %a", f(0.1), 0, f64::from(0.1f32).to_bits()),
        ("cvt.rn.f32.f64 %y, %a", 0.1f64.to_bits(), 0, f(0.1)),
        ("add.rn.f32 %y, %a, %b", f(1.0), f(2f32.powi(-25)), f(1.0)),
        // One rounding: with two, the last bit would be lost.
        ("fma.rn.f32 %y, %a, %b, 0fBF800000", f(almost), f(almost), f(2f32.powi(-11) + 2f32.powi(-24))),
        ("div.rn.f32 %y, %a, %b", f(1.0), f(3.0), f(1.0 / 3.0)),
        ("sqrt.rn.f32 %y, %a", f(2.0), 0, f(2f32.sqrt())),
        ("neg.f32 %y, %a", f(0.0), 0, f(-0.0)),
        ("copysign.f32 %y, %a, %b", f(-1.0), f(3.0), f(-3.0)),
        ("mul.f64 %y, %a, 0d4000000000000000", 1.5f64.to_bits(), 0, 3f64.to_bits()),
        ("setp.lt.s32 %y, %a, %b", low(-1), 1, 1),
        ("setp.lo.u32 %y, %a, %b", low(-1), 1, 0),
        ("setp.lt.f32 %y, %a, %b", f(f32::NAN), f(1.0), 0),
        ("setp.ltu.f32 %y, %a, %b", f(f32::NAN), f(1.0), 1),
        ("setp.neu.f32 %y, %a, %b", f(f32::NAN), f(f32::NAN), 1),
        ("setp.nan.f32 %y, %a, %b", f(1.0), f(f32::NAN), 1),
        ("setp.eq.and.b32 %y, %a, %b, 0", 4, 4, 0),
        ("selp.b32 %y, %a, %b, 1", 4, 5, 4),
        ("mov.b64 %y, {%a, %b}", 1, 2, 0x2_0000_0001),
        ("mov.b32 {_, %y}, %a", 0x1234_5678, 0, 0x1234),
    ];
    for (instruction, a, b, expected) in rows {
        let body = format!(
            "	mov.b64 	%y, 0;
	ld.global.v2.b64 	{{%a, %b}}, [%from];
	{instruction};
	st.global.b64 	[%to], %y;"
        );
        let input = [a.to_le_bytes(), b.to_le_bytes()].concat();
        let found = run(&kernel(&body), 1, &input, 8).unwrap_or_else(|e| panic!("{instruction}: {e}"));
        let found = u64::from_le_bytes(found.try_into().unwrap());
        assert_eq!(found, *expected, "{instruction}: {found:#x}, expected {expected:#x}");
    }
}

#[test]
fn a_part_that_nothing_takes_is_written_as_a_block_in_older_versions() {
    let body = |instruction: &str| {
        format!("	ld.global.b64 	%a, [%from];\n	mov.b64 	%y, 0;\n	{instruction}\n	st.global.b64 	[%to], %y;")
    };
    let input = 0x3_0000_0004u64.to_le_bytes();
    for instruction in ["mov.b64 	{_, %y}, %a;", "{ .reg .b32 tmp; mov.b64 {tmp, %y}, %a; }"] {
        let found = run(&kernel(&body(instruction)), 1, &input, 8).unwrap();
        assert_eq!(found, 3u64.to_le_bytes(), "{instruction}");
    }
    for block in ["{ .reg .b32 tmp; add.s32 tmp, %a, %a; mov.b32 %y, tmp; }", "{ .reg .b32 tmp; bra tmp; }"] {
        let refused = run(&kernel(&body(block)), 1, &input, 8).unwrap_err();
        assert!(refused.starts_with("not understood: `{ .reg"), "{refused}");
    }
}

/// 64 threads write numbers into shared memory and read them backwards.
const BACKWARDS: &str = "	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%at, %r1, 4;
	add.s64 	%rd4, %from, %at;
	ld.global.b32 	%r2, [%rd4];
	mov.b64 	%rd5, held;
	add.s64 	%rd6, %rd5, %at;
	st.shared.b32 	[%rd6], %r2;
	bar.sync 	0;
	sub.s64 	%rd7, 252, %at;
	add.s64 	%rd7, %rd5, %rd7;
	ld.shared.b32 	%r3, [%rd7];
	add.s64 	%rd8, %to, %at;
	st.global.b32 	[%rd8], %r3;";

fn numbers() -> Vec<u8> {
    (0..64u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn threads_see_what_others_wrote_behind_a_barrier() {
    let found = run(&kernel(BACKWARDS), 64, &numbers(), 256).unwrap();
    let expected: Vec<u8> = (0..64u32).rev().flat_map(u32::to_le_bytes).collect();
    assert_eq!(found, expected);
}

#[test]
fn threads_of_a_warp_exchange_values_and_predicates_hold() {
    let body = "	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%at, %r1, 4;
	shfl.sync.bfly.b32 	%r2|%p1, %r1, 1, 31, -1;
	setp.lt.u32 	%p2, %r1, 16;
	@%p2 bra 	$L__BB0_2;
	add.s32 	%r2, %r2, 100;
$L__BB0_2:                              // %joined
	@!%p2 add.s32 	%r2, %r2, 100;
	add.s64 	%rd8, %to, %at;
	st.global.b32 	[%rd8], %r2;";
    let found = run(&kernel(body), 32, &numbers(), 128).unwrap();
    let expected = (0..32u32).map(|i| (i ^ 1) + if i < 16 { 0 } else { 200 });
    assert_eq!(found, expected.flat_map(u32::to_le_bytes).collect::<Vec<_>>());
}

#[test]
fn the_word_of_faults_keeps_the_greatest() {
    let body = "	mov.u32 	%r1, %tid.x;
	cvt.u64.u32 	%word, %r1;
	mov.b64 	%zero, 0;
	setp.ne.s32 	%p1, %r1, 0;
	@%p1 bra 	$L__BB0_2;
	st.global.b64 	[%to], %zero;
$L__BB0_2:
	bar.sync 	0;
	atom.global.max.u64 	%before, [%to], %word;";
    let found = run(&kernel(body), 64, &numbers(), 8).unwrap();
    assert_eq!(found, 63u64.to_le_bytes());
}

#[test]
fn what_is_wrong_in_a_kernel_is_found() {
    for (what, old, new, expected) in [
        ("no barrier", "	bar.sync 	0;\n", "", "a thread reads what another one writes"),
        ("an element too far", "[%rd4]", "[%rd4+4]", "outside of the buffers"),
        ("shared memory that is not there", "[%rd7]", "[%rd7+4]", "outside of the buffers"),
        ("an address between two elements", "[%rd4]", "[%rd4+2]", "not aligned"),
        (
            "one place for all",
            "add.s64 	%rd8, %to, %at",
            "mov.b64 	%rd8, %to",
            "two threads write one element",
        ),
        ("a write to the input", "add.s64 	%rd8, %to, %at", "add.s64 	%rd8, %from, %at", "only read"),
    ] {
        assert!(BACKWARDS.contains(old), "{what}");
        let found = run(&kernel(&BACKWARDS.replace(old, new)), 64, &numbers(), 256).unwrap_err();
        assert!(found.contains(expected), "{what}: {found}");
    }
    let refused = run(&kernel("	ex2.approx.f32 	%y, %y;"), 1, &numbers(), 8).unwrap_err();
    assert_eq!(refused, "not understood: `ex2.approx.f32 	%y, %y;`");
}
