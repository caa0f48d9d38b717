//! What a command counts as in `operations` of the side port's JSON. Asked once for each request that is no hit.

use super::{Effect, Keys, Kind, Spec};
use crate::observe::reasons::Operation;

impl Spec {
    pub(crate) fn operation(&self) -> Operation {
        match self.kind {
            Kind::Get => Operation::Get,
            Kind::Mget => Operation::Mget,
            Kind::Set => Operation::Set,
            Kind::Publish => Operation::Publish,
            Kind::Nearside => Operation::Nearside,
            Kind::Auth
            | Kind::Hello
            | Kind::Select
            | Kind::Reset
            | Kind::Quit
            | Kind::Ping
            | Kind::Readonly
            | Kind::Client => Operation::Connection,
            Kind::Multi | Kind::Exec | Kind::Discard | Kind::Watch | Kind::Unwatch | Kind::Script => Operation::Other,
            Kind::Subscribe | Kind::Psubscribe | Kind::Ssubscribe => Operation::Other,
            Kind::Unsubscribe | Kind::Punsubscribe | Kind::Sunsubscribe => Operation::Other,
            _ => self.by_effect(),
        }
    }

    fn by_effect(&self) -> Operation {
        match (self.effect, self.name) {
            (_, "del" | "unlink") => Operation::Del,
            (_, "echo") => Operation::Connection,
            (Effect::Read, "scan" | "keys" | "dbsize" | "randomkey") => Operation::ReadOther,
            (Effect::Read, _) if self.keys == Keys::None => Operation::Admin,
            (Effect::Read, _) => Operation::ReadOther,
            (Effect::Opaque, _) => Operation::Other,
            (Effect::Write | Effect::Flush | Effect::SwapDb, _) => Operation::WriteOther,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::command::table;

    #[test]
    fn commands_count_as_what_they_are() {
        let of = |name: &str| table::by_name(name.as_bytes()).expect("a command").operation().as_str();
        for (name, expected) in [
            ("get", "get"),
            ("mget", "mget"),
            ("setex", "set"),
            ("unlink", "del"),
            ("publish", "publish"),
            ("hgetall", "read_other"),
            ("scan", "read_other"),
            ("hset", "write_other"),
            ("flushall", "write_other"),
            ("ping", "connection"),
            ("client|setname", "connection"),
            ("info", "admin"),
            ("nearside", "nearside"),
            ("eval", "other"),
            ("multi", "other"),
        ] {
            assert_eq!(of(name), expected, "{name}");
        }
    }
}
