//! The command line of margay: argument parsing and printing.
//!
//! Each command is one file with a `struct Args` and a `fn run` that returns what stdout is to say. Results go to
//! stdout, everything else to stderr; exit codes are listed in `error`. Commands that report take `--json`; the head of
//! each file documents what it prints then. Of a command that fails it is `{"error": …}` ([`error::Failure::json`]), unless
//! there is a report of what was asked for.
//!
//! Deliberately absent: anything a program that uses the `margay` crate could not do.

#![deny(unsafe_code)]

mod args;
mod bench;
mod check;
mod compare;
mod compile;
mod curves;
mod demo;
mod device;
mod differentiate;
mod error;
mod errors;
mod evaluate;
mod explain;
mod export;
mod inspect;
mod interrupt;
mod measure_machine;
mod memory;
mod opt;
mod pareto;
mod progress;
mod recover;
mod run;
mod save;
mod selftest;
mod sensitivity;
mod table;
mod train;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::Failure;

/// Compiles ONNX models into sketched executables: expensive layers are replaced by randomized or low-rank ones where
/// that pays and where the error stays inside a budget.
#[derive(Parser)]
#[command(name = "margay", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 a requested check failed (error limit, budget, comparison); 2 bad usage or \
unsupported model; 3 unreadable or malformed file; 4 device not available; 101 a bug of margay.";

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Compile(compile::Args),
    Train(Box<train::Args>),
    Recover(recover::Args),
    Run(run::Args),
    Bench(bench::Args),
    Compare(compare::Args),
    Evaluate(evaluate::Args),
    Explain(explain::Args),
    Inspect(inspect::Args),
    Check(check::Args),
    Sensitivity(sensitivity::Args),
    Pareto(pareto::Args),
    MeasureMachine(measure_machine::Args),
    Selftest(selftest::Args),
    Export(export::Args),
    Differentiate(differentiate::Args),
    Opt(opt::Args),
}

/// What a command has to say.
#[derive(Default)]
struct Reply {
    /// For stdout.
    text: String,
    /// A check that was asked for and failed, or problems that were found.
    failure: Option<Failure>,
}

impl From<String> for Reply {
    fn from(text: String) -> Reply {
        Reply { text, failure: None }
    }
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        tell(format_args!("error: this is a bug of margay: {panic}"));
        tell("help: please report it with the command and, if possible, the model");
    }));
    let (command, as_json) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&error),
    };
    let reply = match command {
        Command::Demo(args) => demo::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Sensitivity(args) => sensitivity::run(&args),
        Command::Pareto(args) => pareto::run(&args),
        Command::MeasureMachine(args) => measure_machine::run(&args),
        Command::Selftest(args) => selftest::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Differentiate(args) => differentiate::run(&args),
        Command::Opt(args) => opt::run(&args),
    };
    let mut reply = reply.unwrap_or_else(|failure| Reply { text: String::new(), failure: Some(failure) });
    if let (true, true, Some(failure)) = (as_json, reply.text.is_empty(), &reply.failure) {
        reply.text = format!("{:#}\n", failure.json());
    }
    if let Err(unwritten) = print(&reply.text) {
        reply.failure.get_or_insert(unwritten);
    }
    match reply.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            tell(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// The command, and whether it is to print JSON.
fn parse() -> Result<(Command, bool), clap::Error> {
    // A number below 0 is a wrong value, not an option that nobody knows.
    let numbers = |option: clap::Arg| match option.get_long().is_some() && option.get_action().takes_values()
    {
        true => option.allow_negative_numbers(true),
        false => option,
    };
    let command = Cli::command().mut_subcommands(|command| command.mut_args(numbers));
    let matches = command.try_get_matches()?;
    let flag = |(_, m): (&str, &clap::ArgMatches)| m.try_get_one::<bool>("json").ok().flatten().copied();
    let as_json = matches.subcommand().and_then(flag).unwrap_or(false);
    Ok((Cli::from_arg_matches(&matches)?.command, as_json))
}

/// Says what is wrong with the arguments, or what they asked for: help, the version.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args().any(|word| word == "--json") {
        let message = error.to_string();
        let message = message.trim().trim_start_matches("error: ");
        let _ = print(&format!("{:#}\n", Failure::usage(message).json()));
    }
    match error.print() {
        Ok(()) => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
        Err(source) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(source) => {
            tell(unwritten(&source));
            ExitCode::from(2)
        }
    }
}

/// Writes to stdout. Whoever stops reading early, as `head` does, has seen enough.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(unwritten(&source)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn unwritten(source: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot write to stdout: {source}"))
}

/// A line on stderr. Whoever closed it does not want to know.
fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says something on stderr that is no error.
fn note(text: impl std::fmt::Display) {
    tell(format_args!("note: {text}"));
}

/// Says on stderr what should make a reader doubt a result.
fn warn(warnings: &[String]) {
    warnings.iter().for_each(|text| tell(format_args!("warning: {text}")));
}

/// A value as indented JSON with a line end.
fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    let internal = |e: serde_json::Error| Failure::new(margay::Kind::Internal, e.to_string());
    text.map(|text| text + "\n").map_err(internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
