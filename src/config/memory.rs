//! How much memory this process may use: the smallest limit of its cgroup and the cgroups above, version 1 or 2. Read
//! once at start, for `cache.max_bytes: auto`. It does not watch for later changes, and knows nothing of rlimits or of
//! the machine's own memory.

use std::{fs, path::Path};

/// Version 1 writes "no limit" as the largest multiple of the page size in an i64; no machine has 1 EiB.
const UNLIMITED: u64 = 1 << 60;

/// The limit in bytes, if there is one. `root` is `/` outside tests.
pub(super) fn limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| limit_of(root, line)).min()
}

/// One line of `/proc/self/cgroup`: `hierarchy:controllers:path`.
fn limit_of(root: &Path, line: &str) -> Option<u64> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let mount = root.join("sys/fs/cgroup");
    if controllers.is_empty() {
        return smallest(&mount, path, "memory.max");
    }
    if controllers.split(',').any(|c| c == "memory") {
        return smallest(&mount.join("memory"), path, "memory.limit_in_bytes");
    }
    None
}

/// From the group itself up to the mount point. Inside a container the path is often the host's and does not exist
/// below the mount: then only the mount point itself answers, which is the container's own group.
fn smallest(mount: &Path, path: &str, file: &str) -> Option<u64> {
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().filter_map(|group| bytes_in(&mount.join(group).join(file))).min()
}

fn bytes_in(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn version_2_takes_the_smallest_limit_above_the_process() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/kubepods/pod1/c1\n"),
            ("sys/fs/cgroup/kubepods/memory.max", "max\n"),
            ("sys/fs/cgroup/kubepods/pod1/memory.max", "134217728\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/memory.max", "268435456\n"),
        ]);
        assert_eq!(limit(root.path()), Some(134_217_728));
    }

    #[test]
    fn version_2_in_a_container_reads_the_mount_point() {
        let root = machine(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "67108864\n")]);
        assert_eq!(limit(root.path()), Some(67_108_864));
    }

    #[test]
    fn version_1_ignores_its_way_of_saying_no_limit() {
        let root = machine(&[
            ("proc/self/cgroup", "11:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(limit(root.path()), None);
        fs::write(root.path().join("sys/fs/cgroup/memory/memory.limit_in_bytes"), "100000000\n").unwrap();
        assert_eq!(limit(root.path()), Some(100_000_000));
    }

    #[test]
    fn without_cgroups_there_is_no_limit() {
        assert_eq!(limit(machine(&[]).path()), None);
    }
}
