//! The `.margay` file: machine code, packed constants and what a runtime must know to run them.
//!
//! **An artifact is code.** Running one runs whatever machine code it holds: load only what you trust. The hashes
//! in it find accidents, not attacks.
//!
//! ```text
//! header        256 bytes: magic, version, length, section table, hash of all that
//! description   who made it for what, entries, constants (protobuf)
//! code          what back ends made of each entry, tagged with back end and target; in front of each piece a hash of what
//!               the description says of it
//! source        named pieces of bytes: text of the graph, plan, report; absent when stripped
//! weights       constants in the layout the kernels read, on a page boundary
//! ```
//!
//! All entries (the shapes a model was compiled for) share one weights section, in which the same bytes are stored
//! once. Header, description and code are checked whenever a file is opened; a piece of source is checked
//! when it is read, and the weights, which may be large, when [`Artifact::verify_weights`] is called.
//!
//! - [`ArtifactBuilder`] and [`ConstantsLayout`]: what a compiler fills.
//! - [`Artifact`]: a mapped file. [`Parts`]: the same in memory, for code that runs where it was compiled.
//! - [`Description`], [`Entry`], [`StoredConstant`]: what both say of their contents.
//!
//! The same contents give the same bytes. Deliberately absent: compression (weights are used where they are mapped),
//! signatures.

#![forbid(unsafe_code)]

mod artifact;
mod builder;
mod constants;
mod description;
mod error;
mod header;
mod wire;

pub use artifact::Artifact;
pub use builder::{ArtifactBuilder, Parts};
pub use constants::{ConstantsLayout, Placed};
pub use description::{
    CodeSection, Description, Entry, EntryParts, Layout, SectionParts, SourcePiece, StepNote, StoredConstant,
};
pub use error::ArtifactError;
pub use header::{FORMAT_VERSION, is_artifact};
