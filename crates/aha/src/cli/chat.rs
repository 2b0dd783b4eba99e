//! `aha chat`: a conversation in the terminal.

use super::Context;
use super::answer::{Sink, tell};
use super::args::{EngineArgs, MediaArgs, ModelArgs, SamplingArgs};
use super::console::{error, note, stderr_is_terminal};
use super::failure::{Failure, Outcome};
use super::input::read_medium;
use aha::hub::{HubConfig, Store};
use aha::{Chat as Conversation, EngineOptions, Media, Message, Model};
use clap::Args;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
In the conversation:
  /image PATH      show a picture or clip with the next message; may be repeated
  /reset           forget what was said
  /system [TEXT]   set or show the system message
  /help            list the commands
  /quit            end (so does Ctrl-D)
A line that ends with \\ goes on in the next. Ctrl-C stops an answer.

Examples:
  aha chat -m qwen3-0.6b
  aha chat -m ./checkpoint --system \"Answer in one sentence.\" --no-thinking";

const COMMANDS: &str = "\
/image PATH      show a picture or clip with the next message
/reset           forget what was said
/system [TEXT]   set or show the system message
/help            list the commands
/quit            end (so does Ctrl-D)
A line that ends with \\ goes on in the next; a line that begins with // begins with /.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// System message before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Chat {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let (loader, bar) = context.loader(&self.model)?;
        let options = EngineOptions {
            max_sequences: 1,
            ..self.engine.options()
        };
        let model = loader.engine_options(options).build()?;
        bar.finish();
        model.engine()?;
        if !model.has_chat_template() {
            return Err(Failure::message(format!(
                "cannot chat: {}: the model has no chat template; use `aha run --raw`",
                model.name()
            )));
        }
        let mut prompt = Prompt::open()?;
        if stderr_is_terminal() {
            note(&format!("{}; /help lists the commands", model.name()));
        }
        let mut session = Session {
            chat: self,
            model,
            turns: Vec::new(),
            shown: Vec::new(),
        };
        while let Some(line) = prompt.read()? {
            match Line::parse(&line) {
                Line::Empty => {}
                Line::Quit => break,
                Line::Help => note(COMMANDS),
                Line::Reset => session.reset(),
                Line::System(text) => session.system(text),
                Line::Image(path) => session.show(path)?,
                Line::Unknown(command) => {
                    error(&format!(
                        "unknown command: {command}: /help lists the commands"
                    ));
                }
                Line::Text(text) => session.answer(text, context)?,
            }
        }
        prompt.save();
        Ok(())
    }
}

/// What the user typed.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Empty,
    Quit,
    Help,
    Reset,
    System(&'a str),
    Image(&'a str),
    Unknown(&'a str),
    Text(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let text = line.trim();
        if text.is_empty() {
            return Self::Empty;
        }
        if let Some(escaped) = text.strip_prefix('/').filter(|rest| rest.starts_with('/')) {
            return Self::Text(escaped);
        }
        if !text.starts_with('/') {
            return Self::Text(text);
        }
        let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match command {
            "/quit" | "/exit" => Self::Quit,
            "/help" | "/?" => Self::Help,
            "/reset" | "/clear" => Self::Reset,
            "/system" => Self::System(rest.trim()),
            "/image" | "/video" => Self::Image(rest.trim()),
            _ => Self::Unknown(command),
        }
    }
}

struct Session {
    chat: Chat,
    model: Model,
    /// Without the system message.
    turns: Vec<Message>,
    /// What the next message shows.
    shown: Vec<Media>,
}

impl Session {
    fn reset(&mut self) {
        self.turns.clear();
        self.shown.clear();
    }

    /// Takes a picture or clip for the next message. One that cannot be read is told, and the conversation goes on.
    fn show(&mut self, path: &str) -> Outcome {
        let shown =
            read_medium(path).and_then(|bytes| self.chat.media.read(&self.model, path, &bytes));
        match shown {
            Ok(media) => {
                note(&format!("{path} goes with the next message"));
                self.shown.push(media);
            }
            Err(Failure::Message(text)) => error(&text),
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    fn system(&mut self, text: &str) {
        if text.is_empty() {
            note(
                self.chat
                    .system
                    .as_deref()
                    .unwrap_or("there is no system message"),
            );
        } else {
            self.chat.system = Some(text.to_owned());
        }
    }

    /// One turn. A question that gets no answer is forgotten, so that the next one can be asked.
    fn answer(&mut self, text: &str, context: &Context) -> Outcome {
        let shown = self.shown.drain(..);
        let question = shown.fold(Message::new("user"), Message::with_media);
        self.turns.push(question.with_text(text));
        let system = self
            .chat
            .system
            .iter()
            .map(|text| Message::text("system", text));
        let messages = system.chain(self.turns.iter().cloned()).collect();
        let conversation = Conversation {
            messages,
            ..Conversation::default()
        };
        let params = self.chat.media.set(self.chat.sampling.params());
        let answer = match self.model.chat(conversation, &params) {
            Ok(stream) => {
                let mut sink = Sink::stdout();
                context
                    .runtime
                    .block_on(tell(stream, &mut sink, &context.signals))
            }
            Err(refusal) => Err(refusal.into()),
        };
        match answer {
            Ok(told) if told.content.is_empty() && told.end.is_err() => {
                self.turns.pop();
            }
            Ok(told) => self.turns.push(Message {
                reasoning_content: Some(told.reasoning).filter(|text| !text.is_empty()),
                ..Message::text("assistant", told.content)
            }),
            Err(Failure::Message(text)) => {
                self.turns.pop();
                error(&text);
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }
}

/// The line editor, with the history of earlier conversations.
struct Prompt {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Prompt {
    fn open() -> Outcome<Self> {
        let config = Config::builder()
            .history_ignore_space(true)
            .max_history_size(1000);
        let editor = config
            .and_then(|config| Editor::with_config(config.build()))
            .map_err(|error| Failure::message(format!("cannot edit lines: {error}")))?;
        let mut prompt = Self {
            editor,
            history: history_file(),
        };
        if let Some(path) = prompt.history.as_ref().filter(|path| path.exists())
            && let Err(error) = prompt.editor.load_history(path)
        {
            tracing::warn!("the history is not read: {}: {error}", path.display());
            // Nor overwritten.
            prompt.history = None;
        }
        Ok(prompt)
    }

    /// The next input, continued lines joined; `None` at its end.
    fn read(&mut self) -> Outcome<Option<String>> {
        let mut text = String::new();
        loop {
            let sign = if text.is_empty() { "> " } else { "… " };
            match self.editor.readline(sign) {
                Ok(line) => match line.strip_suffix('\\') {
                    Some(part) => {
                        text.push_str(part);
                        text.push('\n');
                    }
                    None => {
                        text.push_str(&line);
                        if !text.trim().is_empty()
                            && let Err(error) = self.editor.add_history_entry(text.as_str())
                        {
                            tracing::debug!("the line is not kept: {error}");
                        }
                        return Ok(Some(text));
                    }
                },
                // Ctrl-C gives a fresh line.
                Err(ReadlineError::Interrupted) => text.clear(),
                Err(ReadlineError::Eof) => return Ok(Some(text).filter(|text| !text.is_empty())),
                Err(error) => {
                    return Err(Failure::message(format!(
                        "cannot read standard input: {error}"
                    )));
                }
            }
        }
    }

    fn save(&mut self) {
        let Some(path) = &self.history else { return };
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let saved = made
            .map_err(ReadlineError::from)
            .and_then(|()| self.editor.save_history(path));
        if let Err(error) = saved {
            tracing::warn!("the history is not kept: {}: {error}", path.display());
        }
    }
}

/// Beside the models. Conversations that come from a pipe leave no history.
fn history_file() -> Option<PathBuf> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return None;
    }
    let store = HubConfig::from_env()
        .and_then(|config| Store::open(None, &config))
        .ok()?;
    Some(store.root().join("chat_history"))
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn lines_are_commands_or_texts() {
        for (line, meaning) in [
            ("", Line::Empty),
            ("  ", Line::Empty),
            ("hello /reset", Line::Text("hello /reset")),
            ("/reset", Line::Reset),
            (" /quit ", Line::Quit),
            ("/exit", Line::Quit),
            ("/system", Line::System("")),
            ("/system  Be brief. ", Line::System("Be brief.")),
            ("/image  my cat.png", Line::Image("my cat.png")),
            ("/rest", Line::Unknown("/rest")),
            ("//etc/hosts", Line::Text("/etc/hosts")),
            ("two\nlines", Line::Text("two\nlines")),
        ] {
            assert_eq!(Line::parse(line), meaning, "{line}");
        }
    }
}
