//! What holds in every kernel.
//!
//! 1. A register is defined once, before it is used, in the same block or one around it, with the type that its
//!    statement gives.
//! 2. Operands have the types that their statement takes; indices and extents are I64.
//! 3. Indices move along axes of loops around them. Loads and stores name arguments that there are, stores written
//!    ones, with values of the argument's type.
//! 4. Parallel loops are the outermost of the only nest of the kernel. Before it stand at most statements without
//!    effect, which extents of the outermost one are read by; the extents of the other parallel ones are known.

use margay_tensor::DType;

use crate::{Axis, Binary, Extent, Index, Kernel, Reg, Stmt, Unary};

/// Everything that does not hold in a kernel.
pub fn verify(kernel: &Kernel) -> Vec<String> {
    let mut c =
        Checker { kernel, defined: vec![false; kernel.regs.len()], open: Vec::new(), found: Vec::new() };
    kernel.body.iter().for_each(|stmt| c.stmt(stmt));
    if let Some(unused) = c.ever_defined().iter().position(|d| !d) {
        c.found.push(format!("nothing defines %{unused}"));
    }
    c.parallel();
    c.found
}

struct Checker<'k> {
    kernel: &'k Kernel,
    /// Registers that are in scope.
    defined: Vec<bool>,
    /// Axes of the loops around.
    open: Vec<Axis>,
    found: Vec<String>,
}

impl Checker<'_> {
    fn ever_defined(&self) -> Vec<bool> {
        let mut ever = vec![false; self.kernel.regs.len()];
        self.kernel.visit(&mut |stmt| {
            for to in stmt.defines() {
                if let Some(slot) = ever.get_mut(to.0 as usize) {
                    *slot = true;
                }
            }
        });
        ever
    }

    fn scoped(&mut self, body: &[Stmt], axis: Axis, inside: &mut dyn FnMut(&mut Self)) {
        let before = self.defined.clone();
        if self.open.contains(&axis) || axis.0 >= self.kernel.axes {
            self.found
                .push(format!("axis i{} is open already or beyond the {} axes", axis.0, self.kernel.axes));
        }
        self.open.push(axis);
        for stmt in body {
            self.stmt(stmt);
        }
        inside(self);
        self.open.pop();
        self.defined = before;
    }

    fn define(&mut self, to: Reg, dtype: Option<DType>) {
        let at = to.0 as usize;
        let Some(&declared) = self.kernel.regs.get(at) else {
            return self.found.push(format!("{to} is beyond the {} registers", self.kernel.regs.len()));
        };
        if self.defined[at] {
            self.found.push(format!("{to} is defined twice"));
        }
        if let Some(dtype) = dtype.filter(|&d| d != declared) {
            self.found.push(format!("{to} is {declared}, expected {dtype}"));
        }
        self.defined[at] = true;
    }

    /// The type of an operand that is in scope.
    fn operand(&mut self, r: Reg) -> Option<DType> {
        match self.defined.get(r.0 as usize) {
            Some(true) => Some(self.kernel.regs[r.0 as usize]),
            _ => {
                self.found.push(format!("{r} is not defined where it is used"));
                None
            }
        }
    }

    fn expect(&mut self, r: Reg, dtype: DType, what: &str) {
        if let Some(found) = self.operand(r).filter(|&d| d != dtype) {
            self.found.push(format!("{what} {r} is {found}, expected {dtype}"));
        }
    }

    fn index(&mut self, index: &Index) {
        if !index.sizes.is_empty() {
            self.found.push(format!("index `{index}` has sizes in a program that is not open"));
        }
        for (axis, _) in &index.axes {
            if !self.open.contains(axis) {
                self.found
                    .push(format!("index `{index}` moves along i{}, which no loop around it has", axis.0));
            }
        }
        for (r, _) in &index.regs {
            self.expect(*r, DType::I64, "index");
        }
    }

    fn extent(&mut self, extent: &Extent<Reg>) {
        match extent {
            Extent::Known(_) => {}
            Extent::Sized { size, .. } => {
                self.found.push(format!("extent {size} in a program that is not open"));
            }
            Extent::Read { from, .. } => self.expect(*from, DType::I64, "extent"),
        }
    }

    fn argument(&mut self, arg: usize) -> Option<crate::Arg> {
        let found = self.kernel.args.get(arg).copied();
        if found.is_none() {
            self.found.push(format!("a{arg} is beyond the {} arguments", self.kernel.args.len()));
        }
        found
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Literal { to, value } => {
                let declared = self.kernel.regs.get(to.0 as usize).copied();
                let narrow = declared.is_some_and(|d| d.is_float() && d != DType::F64);
                let fits = narrow && value.dtype() == DType::F32;
                self.define(*to, Some(value.dtype()).filter(|_| !fits));
            }
            Stmt::Size { size, .. } => {
                self.found.push(format!("size {size} in a program that is not open"));
            }
            Stmt::IndexValue { to, index } => {
                self.index(index);
                self.define(*to, Some(DType::I64));
            }
            Stmt::Unary { to, op, x } => {
                let dtype = self.operand(*x);
                let fits = match (op, dtype) {
                    (Unary::Not, Some(d)) => d == DType::Bool,
                    (Unary::Neg | Unary::Abs, Some(d)) => d != DType::Bool,
                    (_, Some(d)) => d.is_float(),
                    (_, None) => true,
                };
                if !fits {
                    self.found.push(format!("`{} {x}` of {}", op.name(), self.kernel.regs[x.0 as usize]));
                }
                self.define(*to, dtype.map(|d| op.result(d)));
            }
            Stmt::Binary { to, op, x, y } => {
                let (a, b) = (self.operand(*x), self.operand(*y));
                if let (Some(a), Some(b)) = (a, b) {
                    let fits = match op {
                        Binary::And | Binary::Or | Binary::Xor => !a.is_float(),
                        Binary::ShiftLeft | Binary::ShiftRight => {
                            matches!(a, DType::U8 | DType::U16 | DType::U32 | DType::U64)
                        }
                        _ => true,
                    };
                    if a != b || !fits {
                        self.found.push(format!("`{} {x}, {y}` of {a} and {b}", op.name()));
                    }
                }
                self.define(*to, a.map(|d| op.result(d)));
            }
            Stmt::Select { to, test, x, y } => {
                self.expect(*test, DType::Bool, "test");
                let (a, b) = (self.operand(*x), self.operand(*y));
                if let (Some(a), Some(b)) = (a, b)
                    && a != b
                {
                    self.found.push(format!("`select {test}, {x}, {y}` of {a} and {b}"));
                }
                self.define(*to, a);
            }
            Stmt::Cast { to, x } => {
                self.operand(*x);
                self.define(*to, None);
            }
            Stmt::Load { to, arg, index, guard } => {
                self.index(index);
                let dtype = self.argument(*arg).map(|a| a.dtype);
                if let Some((test, other)) = guard {
                    self.expect(*test, DType::Bool, "guard");
                    let same = |d: DType| other.dtype() == d || (d.is_float() && other.dtype() == DType::F32);
                    if let Some(d) = dtype.filter(|&d| !same(d)) {
                        self.found.push(format!("`{other}` stands for an element of {d}"));
                    }
                }
                self.define(*to, dtype.map(DType::computed));
            }
            Stmt::Store { arg, index, value } => {
                self.index(index);
                if let Some(a) = self.argument(*arg) {
                    if !a.written {
                        self.found.push(format!("a{arg} is stored to and not written"));
                    }
                    self.expect(*value, a.dtype.computed(), "value");
                }
            }
            Stmt::Require { test, .. } => self.expect(*test, DType::Bool, "test"),
            Stmt::Loop { axis, extent, body, .. } => {
                self.extent(extent);
                self.scoped(body, *axis, &mut |_| {});
            }
            Stmt::Reduce { axis, extent, results, body } => {
                self.extent(extent);
                let mut types = Vec::new();
                self.scoped(body, *axis, &mut |c| {
                    types = results.iter().map(|(_, _, value)| c.operand(*value)).collect();
                });
                for ((to, _, _), dtype) in results.iter().zip(types) {
                    self.define(*to, dtype);
                }
            }
        }
    }

    /// Rule 4.
    fn parallel(&mut self) {
        let Some((last, before)) = self.kernel.body.split_last() else { return };
        let mut nest = std::slice::from_ref(last);
        let mut outermost = true;
        while let [Stmt::Loop { extent, parallel: true, body, .. }] = nest {
            if !outermost && matches!(extent, Extent::Read { .. }) {
                self.found.push("a parallel loop inside another has an extent that is read".into());
            }
            (outermost, nest) = (false, body);
        }
        let effect = |s: &Stmt| {
            matches!(s, Stmt::Store { .. } | Stmt::Require { .. } | Stmt::Loop { .. } | Stmt::Reduce { .. })
        };
        if !outermost && before.iter().any(effect) {
            self.found.push("statements with effects stand before a parallel loop".into());
        }
        let mut inner = 0;
        for stmt in before.iter().chain(nest) {
            count_parallel(stmt, &mut inner);
        }
        if inner > 0 {
            self.found.push("a loop that is not outermost is parallel".into());
        }
    }
}

fn count_parallel(stmt: &Stmt, count: &mut usize) {
    if let Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } = stmt {
        *count += usize::from(matches!(stmt, Stmt::Loop { parallel: true, .. }));
        body.iter().for_each(|s| count_parallel(s, count));
    }
}
