//! The parts of the `kumiko` command.

pub mod options;

mod client;
mod fetch;
mod format;
mod policy;
mod show;
mod table;
mod terminal;

use std::io;
use std::process::ExitCode;

use thiserror::Error;

use client::ClientError;
use options::Cli;

/// Text of documents and agents that cannot steer a terminal.
pub fn on_a_terminal(text: &str) -> String {
    table::clean_lines(text)
}

/// What was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Yes, or just shown: exit code 0.
    Positive,
    /// No, such as an agent that is not ready: exit code 1.
    Negative,
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Positive => Self::SUCCESS,
            Answer::Negative => Self::from(1),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// The agent said nothing, or nothing that can be read.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// Nobody takes what is shown.
    #[error("cannot write the answer: {0}")]
    Output(#[source] io::Error),
    /// A question that cannot be answered.
    #[error("cannot say: {0}")]
    CannotSay(String),
    /// Documents that are not applied, or not in force.
    #[error("{0}")]
    Refused(String),
    /// This program cannot start.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

impl Error {
    /// 3 when the agent could not be reached or understood, 2 when the question cannot be answered, else 1.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Agent(_) => ExitCode::from(3),
            Self::CannotSay(_) => ExitCode::from(2),
            Self::Output(_) | Self::Refused(_) | Self::Start(_) => ExitCode::from(1),
        }
    }
}

/// Asks and shows.
///
/// # Errors
/// No answer; the text says why and what to do.
pub fn run(cli: &Cli) -> Result<Answer, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    whole(runtime.block_on(fetch::run(cli)))
}

fn whole(result: Result<Answer, Error>) -> Result<Answer, Error> {
    match result {
        // `kumiko flows | head` has what it wanted.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Answer::Positive),
        result => result,
    }
}
