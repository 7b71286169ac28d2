//! Tiles whose left operand is transposed: its rows lie side by side, so that one pointer walks along the terms.

use std::arch::asm;

/// As [`Isa::tile_transposed`](crate::isa::Isa::tile_transposed) with the number of rows fixed and strides in bytes.
pub(super) type TurnedTile = unsafe fn(usize, *const f32, usize, *const f32, *mut f32, usize, usize);

/// One step of the sum of a transposed tile: two vectors of `b`, one element of `a` per row at `$x`.
macro_rules! transposed_step {
    ($b0:literal $b1:literal; $(($t:literal $c0:literal $c1:literal $x:literal))*) => {
        concat!(
            "vmovups zmm0, [{b} + ", $b0, "]\n",
            "vmovups zmm1, [{b} + ", $b1, "]\n",
            $(
                "vbroadcastss zmm", $t, ", dword ptr [{a} + ", $x, "]\n",
                "vfmadd231ps zmm", $c0, ", zmm", $t, ", zmm0\n",
                "vfmadd231ps zmm", $c1, ", zmm", $t, ", zmm1\n",
            )*
            "add {a}, {step}\n",
        )
    };
}

/// The transposed tile with one row per tuple: register of the broadcast element, registers of the sums, place in `a`.
macro_rules! transposed_tile {
    ($name:ident $(($t:literal $c0:literal $c1:literal $x:literal))*) => {
        unsafe fn $name(
            k: usize,
            a: *const f32,
            a_stride: usize,
            b: *const f32,
            c: *mut f32,
            c_stride: usize,
            accumulate: usize,
        ) {
            // SAFETY: reads and writes what the caller promises.
            unsafe {
                asm!(
                    "test {t}, {t}",
                    "jz 20f",
                    "mov {t}, {c}",
                    $(
                        concat!("vmovups zmm", $c0, ", [{t}]"),
                        concat!("vmovups zmm", $c1, ", [{t} + 64]"),
                        "add {t}, {cs}",
                    )*
                    "jmp 21f",
                    "20:",
                    $(
                        concat!("vpxord zmm", $c0, ", zmm", $c0, ", zmm", $c0),
                        concat!("vpxord zmm", $c1, ", zmm", $c1, ", zmm", $c1),
                    )*
                    "21:",
                    "sub {k}, 2",
                    "jb 23f",
                    ".p2align 5",
                    "22:",
                    transposed_step!(0 64; $(($t $c0 $c1 $x))*),
                    transposed_step!(128 192; $(($t $c0 $c1 $x))*),
                    "add {b}, 256",
                    "sub {k}, 2",
                    "jae 22b",
                    "23:",
                    "add {k}, 2",
                    "jz 25f",
                    transposed_step!(0 64; $(($t $c0 $c1 $x))*),
                    "25:",
                    $(
                        concat!("vmovups [{c}], zmm", $c0),
                        concat!("vmovups [{c} + 64], zmm", $c1),
                        "add {c}, {cs}",
                    )*
                    k = inout(reg) k => _,
                    a = inout(reg) a => _,
                    step = in(reg) a_stride,
                    b = inout(reg) b => _,
                    c = inout(reg) c => _,
                    cs = in(reg) c_stride,
                    t = inout(reg) accumulate => _,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                    out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
        }
    };
}

/// `transposed_1` from the first row, `transposed_2` from the first two, and so on.
macro_rules! transposed_tiles {
    ([$($row:tt)*]) => {};
    ([$($row:tt)*] $name:ident $next:tt $($rest:tt)*) => {
        transposed_tile!($name $($row)* $next);
        transposed_tiles!([$($row)* $next] $($rest)*);
    };
}

transposed_tiles!([]
    transposed_1 (2 4 5 0)
    transposed_2 (3 6 7 4)
    transposed_3 (2 8 9 8)
    transposed_4 (3 10 11 12)
    transposed_5 (2 12 13 16)
    transposed_6 (3 14 15 20)
    transposed_7 (2 16 17 24)
    transposed_8 (3 18 19 28)
    transposed_9 (2 20 21 32)
    transposed_10 (3 22 23 36)
    transposed_11 (2 24 25 40)
    transposed_12 (3 26 27 44)
    transposed_13 (2 28 29 48)
    transposed_14 (3 30 31 52)
);

/// The tiles of up to fourteen rows.
pub(super) const TILES: [TurnedTile; 14] = [
    transposed_1,
    transposed_2,
    transposed_3,
    transposed_4,
    transposed_5,
    transposed_6,
    transposed_7,
    transposed_8,
    transposed_9,
    transposed_10,
    transposed_11,
    transposed_12,
    transposed_13,
    transposed_14,
];
