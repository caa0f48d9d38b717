//! How many processors this process may keep busy, for `workers: auto`: the smallest limit of its cgroup and the cgroups
//! above, version 1 or 2, rounded up; without one those of the machine. Read once at start, like `memory`.

use std::{fs, path::Path, thread};

/// More threads than this have not been measured, and one lane feeds them all.
const AUTO_MAX: usize = 4;

/// `workers: auto`. `root` is `/` outside tests.
pub(super) fn workers(root: &Path) -> usize {
    let machine = thread::available_parallelism().map_or(1, usize::from);
    let allowed = limit(root).map_or(machine, |cpus| cpus.ceil() as usize);
    allowed.min(machine).clamp(1, AUTO_MAX)
}

/// The limit in processors, if there is one.
fn limit(root: &Path) -> Option<f64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| limit_of(root, line)).min_by(f64::total_cmp)
}

/// One line of `/proc/self/cgroup`: `hierarchy:controllers:path`. Below the mount point as in `memory`.
fn limit_of(root: &Path, line: &str) -> Option<f64> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let mount = root.join("sys/fs/cgroup");
    let version_2 = controllers.is_empty();
    if !version_2 && !controllers.split(',').any(|c| c == "cpu") {
        return None;
    }
    let groups = Path::new(path.trim_start_matches('/')).ancestors();
    let limits = groups.filter_map(|group| if version_2 { max(&mount.join(group)) } else { quota(&mount, group) });
    limits.min_by(f64::total_cmp)
}

/// Version 2: `cpu.max` holds `quota period`, or `max period`.
fn max(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota.parse().ok()?, period.parse().ok()?)
}

/// Version 1: two files, -1 is no limit. The controller is mounted as `cpu` or, together with another, as `cpu,cpuacct`.
fn quota(mount: &Path, group: &Path) -> Option<f64> {
    let number = |file: &str| -> Option<i64> {
        let read = |dir: &str| fs::read_to_string(mount.join(dir).join(group).join(file)).ok();
        read("cpu").or_else(|| read("cpu,cpuacct"))?.trim().parse().ok()
    };
    share(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn share(quota: i64, period: i64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
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
            ("sys/fs/cgroup/kubepods/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/cpu.max", "400000 100000\n"),
        ]);
        assert_eq!(limit(root.path()), Some(1.5));
    }

    #[test]
    fn version_1_is_read_under_both_names_of_its_mount() {
        for mount in ["cpu", "cpu,cpuacct"] {
            let quota = format!("sys/fs/cgroup/{mount}/docker/x/cpu.cfs_quota_us");
            let period = format!("sys/fs/cgroup/{mount}/docker/x/cpu.cfs_period_us");
            let group = ("proc/self/cgroup", "11:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n0::/\n");
            let root = machine(&[group, (&quota, "50000\n"), (&period, "100000\n")]);
            assert_eq!(limit(root.path()), Some(0.5));
            assert_eq!(workers(root.path()), 1, "rounded up");
            fs::write(root.path().join(&quota), "-1\n").unwrap();
            assert_eq!(limit(root.path()), None);
        }
    }

    #[test]
    fn without_a_limit_it_is_what_the_machine_has_and_never_more_than_four() {
        let root = machine(&[]);
        assert_eq!(limit(root.path()), None);
        let machine_has = thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(workers(root.path()), machine_has.min(AUTO_MAX));
    }
}
