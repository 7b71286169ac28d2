//! Tiles of sixteen or thirty-two columns in assembly.

use std::arch::asm;

/// As [`Isa::tile`](crate::isa::Isa::tile) with the number of rows fixed and strides in bytes.
pub(super) type Tile =
    unsafe fn(usize, *const f32, usize, *const f32, *mut f32, usize, *const f32, *const f32, usize);

/// One step of the sum: a vector of `b` at `$b0` for every sixteen columns, one element of `a` per row at `$x`. Where the
/// order of factors matters, the element of `a` is the left one of 32 columns, or the right one.
macro_rules! step {
    (32 $multiply:literal $b0:literal $b1:literal $x:literal;
     $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        concat!(
            "vmovups zmm0, [{b} + ", $b0, "]\n",
            "vmovups zmm1, [{b} + ", $b1, "]\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            $(
                "vbroadcastss zmm", $t, ", dword ptr [", $at, " + ", $x, "]\n",
                $multiply, " zmm", $c0, ", zmm", $t, ", zmm0\n",
                $multiply, " zmm", $c1, ", zmm", $t, ", zmm1\n",
            )*
        )
    };
    (32 [$multiply:literal right] $b0:literal $b1:literal $x:literal;
     $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        concat!(
            "vmovups zmm0, [{b} + ", $b0, "]\n",
            "vmovups zmm1, [{b} + ", $b1, "]\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            $(
                "vbroadcastss zmm", $t, ", dword ptr [", $at, " + ", $x, "]\n",
                $multiply, " zmm", $c0, ", zmm0, zmm", $t, "\n",
                $multiply, " zmm", $c1, ", zmm1, zmm", $t, "\n",
            )*
        )
    };
    (16 $multiply:literal $b0:literal $b1:literal $x:literal;
     $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        concat!(
            "vmovups zmm0, [{b} + ", $b0, "]\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            $($multiply, " zmm", $c0, ", zmm0, dword ptr [", $at, " + ", $x, "]{{1to16}}\n",)*
        )
    };
}

/// The sums of a row, read from `t`.
macro_rules! load {
    (32 $c0:literal $c1:literal) => {
        concat!("vmovups zmm", $c0, ", [{t}]\nvmovups zmm", $c1, ", [{t} + 64]")
    };
    (16 $c0:literal $c1:literal) => {
        concat!("vmovups zmm", $c0, ", [{t}]")
    };
}

/// Sums of zero.
macro_rules! zero {
    (32 $c0:literal $c1:literal) => {
        concat!(
            "vpxord zmm",
            $c0,
            ", zmm",
            $c0,
            ", zmm",
            $c0,
            "\nvpxord zmm",
            $c1,
            ", zmm",
            $c1,
            ", zmm",
            $c1
        )
    };
    (16 $c0:literal $c1:literal) => {
        concat!("vpxord zmm", $c0, ", zmm", $c0, ", zmm", $c0)
    };
}

/// The sums of a row, written to `c`.
macro_rules! store {
    (32 $c0:literal $c1:literal) => {
        concat!("vmovups [{c}], zmm", $c0, "\nvmovups [{c} + 64], zmm", $c1)
    };
    (16 $c0:literal $c1:literal) => {
        concat!("vmovups [{c}], zmm", $c0)
    };
}

/// The tile with one row per tuple: register of the broadcast element, registers of the sums, place in `a`.
///
/// Written in assembly because compilers hoist the broadcasts of a strided `a` and spill.
macro_rules! tile {
    ($columns:tt $multiply:tt $name:ident $rows:literal
     $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        #[expect(clippy::too_many_arguments, reason = "as `Isa::tile`")]
        unsafe fn $name(
            k: usize,
            a: *const f32,
            a_stride: usize,
            b: *const f32,
            c: *mut f32,
            c_stride: usize,
            start: *const f32,
            ahead: *const f32,
            pace: usize,
        ) {
            // SAFETY: reads and writes what the caller promises; prefetches do not fault.
            unsafe {
                asm!(
                    "test {t}, {t}",
                    "jz 20f",
                    "cmp {t}, {c}",
                    "je 26f",
                    $(
                        load!($columns $c0 $c1),
                    )*
                    "jmp 21f",
                    "26:",
                    $(
                        load!($columns $c0 $c1),
                        "add {t}, {cs}",
                    )*
                    "jmp 21f",
                    "20:",
                    $(
                        zero!($columns $c0 $c1),
                    )*
                    "21:",
                    "mov {t}, {c}",
                    "sub {k}, 4",
                    "jb 23f",
                    ".p2align 5",
                    "22:",
                    step!($columns $multiply 0 64 0; $(($t $c0 $c1 $at))*),
                    step!($columns $multiply 128 192 4; $(($t $c0 $c1 $at))*),
                    step!($columns $multiply 256 320 8; $(($t $c0 $c1 $at))*),
                    step!($columns $multiply 384 448 12; $(($t $c0 $c1 $at))*),
                    "add {a0}, 16",
                    "add {a1}, 16",
                    "add {a2}, 16",
                    "add {a3}, 16",
                    "add {b}, 512",
                    "prefetchw [{t}]",
                    "prefetchw [{t} + 64]",
                    "add {t}, {cs}",
                    "cmp {t}, {e}",
                    "cmova {t}, {e}",
                    "sub {k}, 4",
                    "jae 22b",
                    "23:",
                    "add {k}, 4",
                    "jz 25f",
                    "24:",
                    step!($columns $multiply 0 64 0; $(($t $c0 $c1 $at))*),
                    "add {a0}, 4",
                    "add {a1}, 4",
                    "add {a2}, 4",
                    "add {a3}, 4",
                    "add {b}, 128",
                    "dec {k}",
                    "jnz 24b",
                    "25:",
                    $(
                        store!($columns $c0 $c1),
                        "add {c}, {cs}",
                    )*
                    "/* {rs}: not read by a single row */",
                    k = inout(reg) k => _,
                    a0 = inout(reg) a => _,
                    a1 = inout(reg) a.wrapping_byte_add(3 * a_stride) => _,
                    a2 = inout(reg) a.wrapping_byte_add(5 * a_stride) => _,
                    a3 = inout(reg) a.wrapping_byte_add(10 * a_stride) => _,
                    e = inout(reg) c.wrapping_byte_add(($rows - 1) * c_stride) => _,
                    rs = in(reg) a_stride,
                    b = inout(reg) b => _,
                    f = inout(reg) ahead => _,
                    fs = in(reg) pace,
                    c = inout(reg) c => _,
                    cs = in(reg) c_stride,
                    t = inout(reg) start => _,
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

/// `tile_1` from the first row, `tile_2` from the first two, and so on.
macro_rules! tiles {
    ($columns:tt $multiply:tt [$($row:tt)*]) => {};
    ($columns:tt $multiply:tt [$($row:tt)*] $name:ident $rows:literal $next:tt $($rest:tt)*) => {
        tile!($columns $multiply $name $rows $($row)* $next);
        tiles!($columns $multiply [$($row)* $next] $($rest)*);
    };
}

/// The tiles of up to fourteen rows and so many columns, by the instruction that multiplies and adds.
macro_rules! tiles_with {
    ($columns:tt $multiply:tt) => {{
        tiles!($columns $multiply []
            tile_1 1 (2 4 5 "{a0}")
            tile_2 2 (3 6 7 "{a0} + {rs}")
            tile_3 3 (2 8 9 "{a0} + 2*{rs}")
            tile_4 4 (3 10 11 "{a1}")
            tile_5 5 (2 12 13 "{a1} + {rs}")
            tile_6 6 (3 14 15 "{a2}")
            tile_7 7 (2 16 17 "{a2} + {rs}")
            tile_8 8 (3 18 19 "{a2} + 2*{rs}")
            tile_9 9 (2 20 21 "{a0} + 8*{rs}")
            tile_10 10 (3 22 23 "{a2} + 4*{rs}")
            tile_11 11 (2 24 25 "{a3}")
            tile_12 12 (3 26 27 "{a3} + {rs}")
            tile_13 13 (2 28 29 "{a3} + 2*{rs}")
            tile_14 14 (3 30 31 "{a2} + 8*{rs}")
        );
        [
            tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11, tile_12,
            tile_13, tile_14,
        ]
    }};
}

pub(super) mod multiply_f32 {
    use super::{Tile, asm};

    /// By sixteen columns, by rows.
    pub(crate) const TILES: [[Tile; 14]; 2] = [tiles_with!(16 "vfmadd231ps"), tiles_with!(32 "vfmadd231ps")];
}

pub(super) mod multiply_bf16 {
    use super::{Tile, asm};

    /// By sixteen columns, by rows.
    pub(crate) const TILES: [[Tile; 14]; 2] = [tiles_with!(16 "vdpbf16ps"), tiles_with!(32 "vdpbf16ps")];
}

/// Bytes in quads, those of `a` without a sign and those of `b` with one.
pub(super) mod multiply_unsigned {
    use super::{Tile, asm};

    /// By rows, of 32 columns.
    pub(crate) const TILES: [Tile; 14] = tiles_with!(32 "vpdpbusd");
}

/// Bytes in quads, those of `a` with a sign and those of `b` without one.
pub(super) mod multiply_signed {
    use super::{Tile, asm};

    /// By rows, of 32 columns.
    pub(crate) const TILES: [Tile; 14] = tiles_with!(32 ["vpdpbusd" right]);
}
