//! The process's own vital signs, read from /proc when somebody scrapes. A value that cannot be read is 0, never an error:
//! a scrape must not fail because a container hides /proc.

use std::fs;

/// Resident memory in bytes.
pub(super) fn resident_bytes() -> u64 {
    own_status("VmRSS:")
}

/// Virtual memory in bytes.
pub(super) fn virtual_bytes() -> u64 {
    own_status("VmSize:")
}

fn own_status(line: &str) -> u64 {
    fs::read_to_string("/proc/self/status").map_or(0, |text| kib_of(&text, line))
}

/// `VmRSS:     1234 kB` of /proc/self/status.
fn kib_of(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
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

/// The soft limit of open files.
pub(super) fn files_max() -> f64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.map_or(f64::INFINITY, |limit| limit as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_rss_is_in_kib() {
        assert_eq!(kib_of("Name:\tx\nVmRSS:\t    5120 kB\nThreads:\t1\n", "VmRSS:"), 5120 * 1024);
        assert_eq!(kib_of("Name:\tx\n", "VmRSS:"), 0);
        assert_eq!(kib_of("VmRSS:\tmany kB\n", "VmRSS:"), 0);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        assert!(resident_bytes() > 100 * 1024);
        assert!(virtual_bytes() >= resident_bytes());
        assert!(open_files() >= 3 && files_max() >= open_files() as f64);
    }
}
