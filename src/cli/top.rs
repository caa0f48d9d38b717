//! `nearside top`: a running sidecar, live in a terminal, or one frame of it as plain text. Reads what the side port says to
//! anybody, once a second, and changes nothing. `feed` asks on a thread of its own, so that keys are heard while a sidecar
//! hangs; `board` is what is known; `view` draws it, into a terminal and into text alike. However it ends, by a key, a signal,
//! an error or a panic, the terminal is as it was.

mod board;
mod feed;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

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

/// Until `q`, ctrl-c, or a signal that ends processes.
pub(super) fn live(target: Target) -> Result<(), TopError> {
    if !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    // Before there is a screen that would be left behind.
    let ended = ended()?;
    std::thread::Builder::new().name("terminal".into()).spawn(end_with_terminal)?;
    on_screen(|terminal| watch(terminal, target, &ended)).map_err(TopError::Terminal)
}

/// Runs with a terminal of its own, and puts it back: other screen, raw mode, cursor.
fn on_screen(run: impl FnOnce(&mut DefaultTerminal) -> io::Result<()>) -> io::Result<()> {
    // Its panic hook puts the terminal back before the panic is told of, but leaves the cursor hidden.
    let mut terminal = ratatui::try_init()?;
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Nothing can be done where the terminal is gone.
        let _ = execute!(io::stdout(), Show);
        told(info);
    }));
    let over = run(&mut terminal);
    // Shows the cursor, while the screen is there still.
    drop(terminal);
    ratatui::restore();
    over
}

fn watch(terminal: &mut DefaultTerminal, target: Target, ended: &AtomicBool) -> io::Result<()> {
    let mut board = Board::new(target.place());
    let feed = Feed::start(target)?;
    while !ended.load(Relaxed) {
        feed.news()?.into_iter().for_each(|news| board.hear(news));
        terminal.draw(|frame| view::draw(frame, &board))?;
        if event::poll(TICK)? && ends(&event::read()?) {
            return Ok(());
        }
    }
    Ok(())
}

/// Ends the process when its terminal is closed. Whoever reads keys then reads its end again and again and never comes back
/// (crossterm), with a whole core; and there is no screen that could be put back.
fn end_with_terminal() {
    use rustix::event::{PollFd, PollFlags, poll};
    let terminal = io::stdout();
    loop {
        let mut closed = [PollFd::new(&terminal, PollFlags::empty())];
        match poll(&mut closed, None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => std::process::exit(0),
        }
    }
}

/// Becomes true when the process is asked to end. Ctrl-c is a key here and no signal, but `kill -INT` is one; SIGHUP is the
/// terminal that was closed.
fn ended() -> io::Result<Arc<AtomicBool>> {
    let ended = Arc::<AtomicBool>::default();
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, ended.clone())?;
    }
    Ok(ended)
}

fn ends(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}
