//! Parameters of kernel calls as text: `{m = 8, n = 64, k = 64, epilogue = {bias = true}}`.
//!
//! A struct lists its fields once, with the macro `fields!`, and is written and read by that list. Fields that hold
//! their defaults are left out.

use margay_tensor::DType;

use super::words::{quoted, split_top, take_name};

/// A value that text forms write and read.
pub trait Field: Sized + PartialEq {
    /// The text form.
    fn write(&self) -> String;
    /// Reads the text form.
    fn read(text: &str) -> Result<Self, String>;
}

macro_rules! plain {
    ($($t:ty, $what:literal);* $(;)?) => { $(
        impl Field for $t {
            fn write(&self) -> String {
                self.to_string()
            }
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!(concat!("`{}` is not ", $what), text))
            }
        }
    )* };
}
plain! { usize, "a count"; u32, "a word"; i64, "an integer"; bool, "`true` or `false`" }

impl Field for DType {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        DType::from_name(text).ok_or_else(|| format!("`{text}` is not an element type"))
    }
}

impl<T: Field> Field for Option<T> {
    fn write(&self) -> String {
        self.as_ref().map_or("none".into(), Field::write)
    }
    fn read(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(None) } else { T::read(text).map(Some) }
    }
}

impl<T: Field> Field for Vec<T> {
    fn write(&self) -> String {
        let items: Vec<String> = self.iter().map(Field::write).collect();
        format!("[{}]", items.join(", "))
    }
    fn read(text: &str) -> Result<Self, String> {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let inner = inner.ok_or_else(|| format!("`{text}` is not a list"))?;
        split_top(inner).into_iter().map(T::read).collect()
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn write(&self) -> String {
        let items: Vec<String> = self.iter().map(Field::write).collect();
        format!("[{}]", items.join(", "))
    }
    fn read(text: &str) -> Result<Self, String> {
        let items = Vec::<T>::read(text)?;
        let found = items.len();
        items.try_into().map_err(|_| format!("expected {N} values, found {found} in `{text}`"))
    }
}

/// The pairs of `{name = value, …}`.
pub(crate) fn pairs(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
    let inner = inner.ok_or_else(|| format!("`{text}` is not a list of fields"))?;
    let pair = |p: &'_ str| -> Result<(usize, usize), String> {
        let at = p.find(" = ").ok_or_else(|| format!("`{p}` is not a field"))?;
        Ok((at, at + 3))
    };
    split_top(inner).into_iter().map(|p| pair(p).map(|(end, start)| (&p[..end], &p[start..]))).collect()
}

/// Declares the fields of a struct: `fields!(Attention { batch, mask = None, causal = false })`.
macro_rules! fields {
    ($name:ident { $($field:ident $(= $default:expr)?),* $(,)? }) => {
        impl $crate::text::Field for $name {
            fn write(&self) -> String {
                let mut out: Vec<String> = Vec::new();
                $(
                    let default = $crate::text::fields!(@default $($default)?);
                    if default.as_ref() != Some(&self.$field) {
                        let value = $crate::text::Field::write(&self.$field);
                        out.push(format!(concat!(stringify!($field), " = {}"), value));
                    }
                )*
                format!("{{{}}}", out.join(", "))
            }

            fn read(text: &str) -> Result<Self, String> {
                let given = $crate::text::pairs(text)?;
                let known: &[&str] = &[$(stringify!($field)),*];
                if let Some((name, _)) = given.iter().find(|(name, _)| !known.contains(name)) {
                    return Err(format!("unknown field `{name}`"));
                }
                Ok($name {
                    $($field: match given.iter().find(|(name, _)| *name == stringify!($field)) {
                        Some((_, text)) => $crate::text::Field::read(text)
                            .map_err(|e| format!(concat!("field `", stringify!($field), "`: {}"), e))?,
                        None => $crate::text::fields!(@default $($default)?)
                            .ok_or(concat!("missing field `", stringify!($field), "`"))?,
                    }),*
                })
            }
        }
    };
    (@default) => { None };
    (@default $default:expr) => { Some($default) };
}
pub(crate) use fields;

impl Field for String {
    fn write(&self) -> String {
        quoted(self)
    }
    fn read(text: &str) -> Result<Self, String> {
        match take_name(text)? {
            (name, "") => Ok(name),
            (_, rest) => Err(format!("unexpected `{rest}`")),
        }
    }
}
