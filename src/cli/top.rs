//! `nearside top`: a running sidecar, live in a terminal, or one frame of it as plain text. Reads what the side port says to
//! anybody, once a second, and changes nothing. `feed` asks on a thread of its own, so that keys are heard while a sidecar
//! hangs; `board` is what is known; `view` draws it, into a terminal and into text alike.

mod board;
mod feed;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::health::Target;
use board::Board;

pub(super) use board::clean;
use feed::{Feed, News};
pub(super) use view::span;

/// How long a key is waited for before the frame is looked at again: soon enough that a resize does not look broken.
const TICK: Duration = Duration::from_millis(200);

/// A frame as text, where the terminal's size is not known.
const TEXT_SIZE: (u16, u16) = (100, 48);

/// Narrower frames say nothing.
pub(super) const NARROWEST: u16 = 20;

#[derive(Args)]
pub(super) struct TopArgs {
    /// Side port of the running process [default: the first address of http.listen]
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// Configuration file that names http.listen [env: NEARSIDE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<String>,
    /// Print one frame as text and exit; the width is that of $COLUMNS, or 100
    #[arg(long)]
    pub(super) once: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TopError {
    #[error("standard output is no terminal; --once prints one frame as text")]
    NoTerminal,
    #[error("the terminal: {0}")]
    Terminal(#[from] io::Error),
    #[error("{0}")]
    NoAnswer(String),
}

/// One frame as text.
pub(super) fn once(target: &Target, columns: Option<u16>) -> Result<String, TopError> {
    let mut board = Board::new(target.place());
    board.seed(feed::history(target));
    board.hear(News::Snapshot(Box::new(feed::look(target).map_err(TopError::NoAnswer)?)));
    Ok(text(&board, columns.unwrap_or(TEXT_SIZE.0), TEXT_SIZE.1))
}

/// What a terminal of this size would show, without trailing blanks.
fn text(board: &Board, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory is always there to draw on");
    terminal.draw(|frame| view::draw(frame, board)).expect("memory is always there to draw on");
    let buffer = terminal.backend().buffer();
    let row = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    let text: Vec<String> = (0..height).map(row).collect();
    text.join("\n").trim_end().to_owned() + "\n"
}

/// Until `q` or ctrl-c.
pub(super) fn live(target: Target) -> Result<(), TopError> {
    if !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    // It also has a panic put the terminal back before it is told of.
    let mut terminal = ratatui::try_init()?;
    let over = watch(&mut terminal, target);
    ratatui::restore();
    over.map_err(TopError::Terminal)
}

fn watch(terminal: &mut DefaultTerminal, target: Target) -> io::Result<()> {
    let mut board = Board::new(target.place());
    let feed = Feed::start(target)?;
    loop {
        feed.news().for_each(|news| board.hear(news));
        terminal.draw(|frame| view::draw(frame, &board))?;
        if event::poll(TICK)? && ends(&event::read()?) {
            return Ok(());
        }
    }
}

fn ends(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}
