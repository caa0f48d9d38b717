//! The process's own vital signs, read from /proc when somebody scrapes. A value that cannot be read is 0, never an error:
//! a scrape must not fail because a container hides /proc.

use std::fs;

/// Resident memory in bytes.
pub(super) fn resident_bytes() -> u64 {
    fs::read_to_string("/proc/self/status").map_or(0, |text| vm_rss(&text))
}

/// `VmRSS:     1234 kB` of /proc/self/status.
fn vm_rss(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Open file descriptors: since Linux 6.2 the directory's size says it, before that it is read.
pub(super) fn open_files() -> u64 {
    let path = "/proc/self/fd";
    match fs::metadata(path).map_or(0, |meta| meta.len()) {
        // The directory that is open for counting counts itself.
        0 => fs::read_dir(path).map_or(0, |dir| (dir.count() as u64).saturating_sub(1)),
        count => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_rss_is_in_kib() {
        assert_eq!(vm_rss("Name:\tx\nVmRSS:\t    5120 kB\nThreads:\t1\n"), 5120 * 1024);
        assert_eq!(vm_rss("Name:\tx\n"), 0);
        assert_eq!(vm_rss("VmRSS:\tmany kB\n"), 0);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        assert!(resident_bytes() > 100 * 1024);
        assert!(open_files() >= 3);
    }
}
