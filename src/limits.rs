//! Every bound of the data path in one place, each with its reason. Bounds that a user may choose are in `config`; these
//! are the ones nobody should have to think about.

/// A request that declares, or a reply that announces, more than this leaves the shared lane for a dedicated connection
/// (COHERENCE decision 10): 1 MiB takes under a millisecond on loopback and about 8 ms on 1 Gbit/s, the most that other
/// clients of a lane should ever wait for somebody else's bytes.
pub(crate) const LARGE: usize = 1 << 20;

/// The longest line Redis accepts while looking for the end of an inline request, a multibulk count or a bulk length
/// (`PROTO_INLINE_MAX_SIZE` in Redis).
pub(crate) const INLINE_MAX: usize = 64 * 1024;

/// `proto-max-bulk-len`, Redis's default: the longest single argument.
pub(crate) const BULK_MAX: usize = 512 << 20;

/// How deep a reply may nest before it is called garbage. Redis itself nests at most seven levels, but a script's table that
/// contains itself is sent until Lua's stack of 8,000 slots (`LUAI_MAXCSTACK`) is full. A level costs 24 bytes here.
pub(crate) const DEPTH_MAX: usize = 16 * 1024;

/// How deep a reply may nest that is decoded, by recursion: only replies to our own questions are, and pushes.
pub(crate) const DECODED_DEPTH_MAX: usize = 256;
