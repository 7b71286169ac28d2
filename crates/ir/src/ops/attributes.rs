//! Attributes of operators and their text form.

use margay_loops::text::words::split_top;
use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::Region;
use crate::ops::Numbers;

/// A float attribute: equal when its bits are equal, printed as the shortest text that reads back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bits(u64);

impl Bits {
    /// Wraps a number.
    pub fn new(v: f64) -> Bits {
        Bits(v.to_bits())
    }

    /// The number.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

/// A number of any element type as an attribute. An f64 does not hold all integers of 64 bits; those that it does not hold
/// are integers here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Number {
    /// A float, or an integer that is one.
    Float(Bits),
    /// Any other integer.
    Int(i128),
}

impl Number {
    /// A float.
    pub fn float(v: f64) -> Number {
        Number::Float(Bits::new(v))
    }

    /// An integer.
    pub fn int(v: i128) -> Number {
        if v as f64 as i128 == v { Number::float(v as f64) } else { Number::Int(v) }
    }

    /// The only element of a tensor; `None` of one with none or several.
    pub fn of(t: &Tensor) -> Option<Number> {
        match Numbers::of(t).ok()? {
            Numbers::Float(v) => <[f64; 1]>::try_from(v).ok().map(|[v]| Number::float(v)),
            Numbers::Int(v) => <[i128; 1]>::try_from(v).ok().map(|[v]| Number::int(v)),
        }
    }

    /// As a tensor without axes, converted to the type.
    pub fn tensor(self, dtype: DType) -> Tensor {
        let numbers = match self {
            Number::Float(v) => Numbers::Float(vec![v.get()]),
            Number::Int(v) => Numbers::Int(vec![v]),
        };
        numbers.into_tensor(dtype, &[]).expect("a scalar of any type can be made")
    }
}

/// A value an operator may have as an attribute.
pub trait Attribute: Sized + Clone + PartialEq {
    /// The text form.
    fn write(&self) -> String;
    /// Reads the text form.
    fn read(text: &str) -> Result<Self, String>;
    /// The value with symbols replaced.
    #[must_use]
    fn bind(&self, binding: &Binding) -> Self;
    /// The graphs in the value; most have none.
    fn regions(&self) -> Vec<&Region> {
        Vec::new()
    }
    /// The graphs in the value, to be replaced.
    fn regions_mut(&mut self) -> Vec<&mut Region> {
        Vec::new()
    }
}

macro_rules! plain {
    ($($t:ty, $what:literal);* $(;)?) => { $(
        impl Attribute for $t {
            fn write(&self) -> String {
                self.to_string()
            }
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!(concat!("`{}` is not ", $what), text))
            }
            fn bind(&self, _: &Binding) -> Self {
                self.clone()
            }
        }
    )* };
}
plain! { usize, "a count"; u64, "an integer from 0 on"; i64, "an integer"; bool, "`true` or `false`" }

impl Attribute for Bits {
    fn write(&self) -> String {
        format!("{:?}", self.get())
    }
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Bits::new).map_err(|_| format!("`{text}` is not a number"))
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

impl Attribute for Number {
    fn write(&self) -> String {
        match self {
            Number::Float(v) => v.write(),
            Number::Int(v) => v.to_string(),
        }
    }
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Number::int).or_else(|_| Bits::read(text).map(Number::Float))
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

impl Attribute for DType {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        DType::from_name(text).ok_or_else(|| format!("`{text}` is not an element type"))
    }
    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}

impl Attribute for Dim {
    fn write(&self) -> String {
        self.to_string()
    }
    fn read(text: &str) -> Result<Self, String> {
        Dim::parse(text)
    }
    fn bind(&self, binding: &Binding) -> Self {
        self.substitute(binding)
    }
}

impl<T: Attribute> Attribute for Vec<T> {
    fn write(&self) -> String {
        let items: Vec<String> = self.iter().map(Attribute::write).collect();
        format!("[{}]", items.join(", "))
    }
    fn read(text: &str) -> Result<Self, String> {
        let inner = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .ok_or_else(|| format!("`{text}` is not a list"))?;
        split_top(inner).into_iter().map(T::read).collect()
    }
    fn bind(&self, binding: &Binding) -> Self {
        self.iter().map(|v| v.bind(binding)).collect()
    }
}

impl<T: Attribute, const N: usize> Attribute for [T; N] {
    fn write(&self) -> String {
        self.to_vec().write()
    }
    fn read(text: &str) -> Result<Self, String> {
        let items = Vec::<T>::read(text)?;
        let found = items.len();
        items.try_into().map_err(|_| format!("expected {N} values, found {found} in `{text}`"))
    }
    fn bind(&self, binding: &Binding) -> Self {
        self.each_ref().map(|v| v.bind(binding))
    }
}

/// The attributes of an operator as a list. Written by the macro `attributes!`.
pub trait Attributes: Sized {
    /// Those that differ from their defaults, in declaration order.
    fn write(&self) -> Vec<(&'static str, String)>;
    /// Reads them; a missing one takes its default, an unknown one is an error.
    fn read(given: &[(&str, &str)]) -> Result<Self, String>;
    /// Symbols replaced by their values.
    #[must_use]
    fn bind(&self, binding: &Binding) -> Self;
    /// The graphs among them; most operators have none.
    fn regions(&self) -> Vec<&Region> {
        Vec::new()
    }
    /// The graphs among them, to be replaced.
    fn regions_mut(&mut self) -> Vec<&mut Region> {
        Vec::new()
    }
}

/// Declares which fields of an operator are attributes: `attributes!(Softmax { axis, scale = default })`.
macro_rules! attributes {
    ($name:ident { $($field:ident $(= $default:expr)?),* $(,)? }) => {
        impl $crate::ops::Attributes for $name {
            #[allow(unused_mut, reason = "an operator may have no attributes")]
            fn write(&self) -> Vec<(&'static str, String)> {
                let mut out = Vec::new();
                $(
                    let default = attributes!(@default $($default)?);
                    if default.as_ref() != Some(&self.$field) {
                        out.push((stringify!($field), $crate::ops::Attribute::write(&self.$field)));
                    }
                )*
                out
            }

            fn read(given: &[(&str, &str)]) -> Result<Self, String> {
                let known: &[&str] = &[$(stringify!($field)),*];
                if let Some((name, _)) = given.iter().find(|(name, _)| !known.contains(name)) {
                    return Err(format!("unknown attribute `{name}`"));
                }
                Ok($name {
                    $($field: match given.iter().find(|(name, _)| *name == stringify!($field)) {
                        Some((_, text)) => $crate::ops::Attribute::read(text)
                            .map_err(|e| format!("attribute `{}`: {e}", stringify!($field)))?,
                        None => attributes!(@default $($default)?)
                            .ok_or(concat!("missing attribute `", stringify!($field), "`"))?,
                    }),*
                })
            }

            #[allow(unused_mut, reason = "an operator may have no attributes")]
            fn regions(&self) -> Vec<&$crate::Region> {
                let mut found: Vec<&$crate::Region> = Vec::new();
                $(found.extend($crate::ops::Attribute::regions(&self.$field));)*
                found
            }

            #[allow(unused_mut, reason = "an operator may have no attributes")]
            fn regions_mut(&mut self) -> Vec<&mut $crate::Region> {
                let mut found: Vec<&mut $crate::Region> = Vec::new();
                $(found.extend($crate::ops::Attribute::regions_mut(&mut self.$field));)*
                found
            }

            #[allow(unused_variables, reason = "an operator may have no attributes")]
            fn bind(&self, binding: &margay_tensor::Binding) -> Self {
                $name { $($field: $crate::ops::Attribute::bind(&self.$field, binding)),* }
            }
        }
    };
    (@default) => { None };
    (@default $default:expr) => { Some($default) };
}
pub(crate) use attributes;
