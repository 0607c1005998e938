//! The disk that the crash tests trust, tested itself.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use fastrand::Rng;
use tempfile::TempDir;
use verdict::log::disk::{Disk, DiskFile, RealDisk};

use super::{EIO, ENOSPC, EROFS, Fault, SimulatedDisk};

const SEEDS: u64 = 400;
const FILE: &str = "/log/file";

fn directory() -> &'static Path {
    Path::new("/log")
}

fn in_log(name: &str) -> PathBuf {
    directory().join(name)
}

fn create(disk: &SimulatedDisk, name: &str) -> Box<dyn DiskFile> {
    disk.create(&in_log(name)).expect("a new file")
}

/// A disk with a file of this content, all of it durable.
fn disk_with(content: &[u8]) -> (SimulatedDisk, Box<dyn DiskFile>) {
    let disk = SimulatedDisk::new(1);
    let file = create(&disk, "file");
    file.write_at(content, 0).unwrap();
    file.sync().unwrap();
    disk.sync_directory(directory()).unwrap();
    (disk, file)
}

/// The disk after many power cuts at the same moment.
fn cuts(disk: &SimulatedDisk) -> impl Iterator<Item = SimulatedDisk> {
    (0..SEEDS).map(|seed| disk.cut(&mut Rng::with_seed(seed)))
}

/// What the file can be after a power cut now.
fn outcomes(disk: &SimulatedDisk) -> BTreeSet<Vec<u8>> {
    cuts(disk).map(|cut| cut.contents(FILE)).collect()
}

/// Which sets of names there can be after a power cut now, each set in one string.
fn name_outcomes(disk: &SimulatedDisk) -> BTreeSet<String> {
    cuts(disk)
        .map(|cut| cut.names(directory()).unwrap().join(" "))
        .collect()
}

fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}

#[test]
fn what_was_synced_survives_every_cut() {
    let (disk, file) = disk_with(&[1; 3000]);
    file.write_at(&[2; 3000], 3000).unwrap();
    for content in outcomes(&disk) {
        assert_eq!(content[..3000], [1; 3000]);
    }
    file.sync().unwrap();
    let expected = [[1; 3000], [2; 3000]].concat();
    assert_eq!(outcomes(&disk), set([expected]));
}

#[test]
fn what_was_not_synced_is_kept_lost_or_torn() {
    let (disk, file) = disk_with(&[1; 512]);
    file.write_at(&[2; 2048], 512).unwrap();
    let outcomes = outcomes(&disk);
    let sectors = |content: &[u8]| content.chunks(512).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let has = |wanted: &[u8]| {
        let wanted: Vec<_> = wanted.iter().map(|byte| vec![*byte; 512]).collect();
        outcomes.iter().any(|content| sectors(content) == wanted)
    };
    assert!(has(&[1]), "lost");
    assert!(has(&[1, 2, 2, 2, 2]), "kept");
    assert!(has(&[1, 2]) && has(&[1, 2, 2, 2]), "torn at the end");
    assert!(
        outcomes.iter().any(|content| content
            .windows(513)
            .any(|bytes| bytes[0] == 0 && bytes[512] == 2)),
        "a sector missing before others"
    );
    assert!(has(&[1, 0, 0, 0, 0]), "the length without the bytes");
    let is_garbage = |sector: &Vec<u8>| sector.iter().any(|byte| !matches!(byte, 0..=2));
    let garbage = outcomes
        .iter()
        .filter(|content| sectors(content).iter().any(is_garbage));
    assert!(garbage.count() > 0, "garbage");
    assert!(outcomes.iter().all(|content| content.len() % 512 == 0));
}

#[test]
fn a_sector_is_old_or_new_as_a_whole() {
    let (disk, file) = disk_with(&[1; 1024]);
    file.write_at(&[2; 100], 462).unwrap();
    let merged = |first: u8, second: u8| {
        let mut content = vec![1; 1024];
        content[462..512].fill(first);
        content[512..562].fill(second);
        content
    };
    let expected = [merged(1, 1), merged(2, 1), merged(1, 2), merged(2, 2)];
    assert_eq!(outcomes(&disk), set(expected));
}

#[test]
fn a_sector_is_as_it_once_was_in_memory() {
    let (disk, file) = disk_with(&[1; 3]);
    file.write_at(&[2], 0).unwrap();
    file.write_at(&[3], 1).unwrap();
    let expected = [vec![1, 1, 1], vec![2, 1, 1], vec![2, 3, 1]];
    assert_eq!(outcomes(&disk), set(expected));
}

#[test]
fn a_cut_file_has_a_length_it_once_had() {
    let (disk, file) = disk_with(b"abcdef");
    file.set_size(2).unwrap();
    file.set_size(4).unwrap();
    let expected = ["abcdef", "ab", "ab\0\0"].map(Vec::from);
    assert_eq!(outcomes(&disk), set(expected));
    file.sync().unwrap();
    assert_eq!(disk.cut(&mut Rng::with_seed(1)).contents(FILE), b"ab\0\0");
}

#[test]
fn bytes_that_were_filled_up_and_synced_are_zeros_until_written() {
    let (disk, file) = disk_with(b"");
    file.set_size(2048).unwrap();
    file.sync().unwrap();
    file.write_at(&[1; 1024], 512).unwrap();
    for content in outcomes(&disk) {
        assert_eq!(content.len(), 2048);
        assert!(content.iter().all(|byte| *byte <= 1));
    }
}

#[test]
fn a_name_is_durable_by_its_directory_only() {
    let disk = SimulatedDisk::new(1);
    create(&disk, "a").sync().unwrap();
    create(&disk, "b").sync().unwrap();
    assert_eq!(
        name_outcomes(&disk),
        set(["", "a", "a b"].map(String::from))
    );
    disk.sync_directory(Path::new("/elsewhere")).unwrap();
    assert_eq!(name_outcomes(&disk).len(), 3);
    disk.sync_directory(directory()).unwrap();
    assert_eq!(name_outcomes(&disk), set(["a b".to_owned()]));
}

#[test]
fn the_names_of_a_directory_say_nothing_about_content() {
    let disk = SimulatedDisk::new(1);
    create(&disk, "file").write_at(b"new", 0).unwrap();
    disk.sync_directory(directory()).unwrap();
    let allowed = set(["", "new", "\0\0\0"].map(Vec::from));
    let outcomes = outcomes(&disk);
    assert!(outcomes.contains(b"".as_slice()) && outcomes.contains(b"new".as_slice()));
    let garbage = &outcomes - &allowed;
    assert!(garbage.iter().all(|content| content.len() == 3));
}

#[test]
fn a_rename_happens_as_a_whole_or_not_at_all() {
    let (disk, _) = disk_with(b"old");
    let temporary = create(&disk, "temporary");
    temporary.write_at(b"new", 0).unwrap();
    temporary.sync().unwrap();
    disk.rename(&in_log("temporary"), &in_log("file")).unwrap();
    assert_eq!(disk.contents(FILE), b"new");
    assert_eq!(outcomes(&disk), set(["old", "new"].map(Vec::from)));
    for cut in cuts(&disk) {
        let is_old = cut.contents(FILE) == b"old";
        assert!(is_old || cut.paths() == [in_log("file")]);
    }
    disk.sync_directory(directory()).unwrap();
    assert_eq!(outcomes(&disk), set([b"new".to_vec()]));
}

#[test]
fn a_removed_file_can_come_back() {
    let (disk, _) = disk_with(b"content");
    disk.remove(&in_log("file")).unwrap();
    assert!(disk.paths().is_empty());
    assert_eq!(name_outcomes(&disk), set(["", "file"].map(String::from)));
    let mut cuts = cuts(&disk).filter(|cut| !cut.paths().is_empty());
    assert!(cuts.all(|cut| cut.contents(FILE) == b"content"));
    disk.sync_directory(directory()).unwrap();
    assert_eq!(name_outcomes(&disk), set([String::new()]));
}

#[test]
fn creating_over_a_file_keeps_its_name_and_may_keep_its_content() {
    let (disk, _) = disk_with(b"content");
    create(&disk, "file");
    assert_eq!(disk.contents(FILE), b"");
    let outcomes = outcomes(&disk);
    assert!(outcomes.contains(b"".as_slice()) && outcomes.contains(b"content".as_slice()));
}

#[test]
fn an_open_file_does_not_need_its_name() {
    let (disk, file) = disk_with(b"first");
    disk.rename(&in_log("file"), &in_log("renamed")).unwrap();
    file.write_at(b"later", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(disk.contents(in_log("renamed")), b"later");
    disk.remove(&in_log("renamed")).unwrap();
    file.write_at(b"!", 5).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 6);
    for cut in cuts(&disk) {
        let mut paths = cut.paths().into_iter();
        assert!(paths.all(|path| cut.contents(path).starts_with(b"later")));
    }
}

#[test]
fn a_failed_sync_leaves_its_writes_in_doubt() {
    let (disk, file) = disk_with(&[1; 512]);
    file.write_at(&[2; 512], 512).unwrap();
    disk.fail_syncs(Some(Fault::once(EIO)));
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(EIO));
    file.write_at(&[3; 512], 1024).unwrap();
    file.sync().unwrap();
    assert_eq!(disk.contents(FILE)[512..1024], [2; 512]);
    let outcomes = outcomes(&disk);
    let mut middles = outcomes.iter().map(|content| &content[512..1024]);
    assert!(middles.clone().any(|middle| middle == [2; 512]), "kept");
    assert!(middles.any(|middle| middle == [0; 512]), "lost");
    for content in &outcomes {
        assert_eq!(content[..512], [1; 512]);
        assert_eq!(content[1024..], [3; 512]);
    }
    file.write_at(&[2; 512], 512).unwrap();
    file.sync().unwrap();
    assert_eq!(self::outcomes(&disk), set([disk.contents(FILE)]));
}

#[test]
fn a_failed_sync_of_a_directory_leaves_its_names_in_doubt() {
    let disk = SimulatedDisk::new(1);
    create(&disk, "a");
    disk.fail_syncs(Some(Fault::always(EIO)));
    disk.sync_directory(directory()).unwrap_err();
    disk.sync_directory(directory()).unwrap_err();
    disk.fail_syncs(None);
    create(&disk, "b");
    disk.sync_directory(directory()).unwrap();
    assert_eq!(name_outcomes(&disk), set(["a b", "b"].map(String::from)));
}

#[test]
fn a_dead_process_loses_nothing_but_makes_nothing_durable() {
    let (disk, file) = disk_with(b"a");
    file.write_at(b"b", 1).unwrap();
    create(&disk, "name");
    disk.fail_reads(Some(Fault::always(EIO)));
    let killed = disk.kill();
    file.write_at(b"c", 2).unwrap();
    let reopened = killed.open(&in_log("file")).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(reopened.read_at(&mut buffer, 0).unwrap(), 2);
    assert_eq!(killed.paths(), [in_log("file"), in_log("name")]);
    assert!(outcomes(&killed).contains(b"a".as_slice()));
    reopened.sync().unwrap();
    assert_eq!(outcomes(&killed), set([b"ab".to_vec()]));
    assert_eq!(name_outcomes(&killed).len(), 2);
}

#[test]
fn a_disk_after_a_cut_is_another_disk() {
    let (disk, file) = disk_with(b"a");
    disk.power_off_after(disk.crash_points());
    let cut = disk.cut(&mut Rng::with_seed(1));
    disk.power_off_after(u64::MAX);
    file.write_at(b"b", 0).unwrap();
    let reopened = cut.open(&in_log("file")).unwrap();
    reopened.write_at(b"c", 0).unwrap();
    assert_eq!(disk.contents(FILE), b"b");
    assert_eq!(cut.contents(FILE), b"c");
    assert_eq!(cut.crash_points(), 1);
}

#[test]
fn a_cut_depends_on_its_seed_only() {
    let (disk, file) = disk_with(&[1; 512]);
    file.write_at(&[2; 4096], 100).unwrap();
    let twice = cuts(&disk).zip(cuts(&disk));
    for (once, again) in twice {
        assert_eq!(once.contents(FILE), again.contents(FILE));
    }
}

#[test]
fn a_full_disk_can_write_short() {
    let mut written = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimulatedDisk::new(seed);
        let file = create(&disk, "file");
        disk.fail_writes(Some(Fault::always(ENOSPC).short()));
        let error = file.write_at(b"abc", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        written.insert(disk.contents(FILE));
    }
    assert_eq!(written, set(["", "a", "ab", "abc"].map(Vec::from)));
}

#[test]
fn writes_fail_as_often_as_asked() {
    let (disk, file) = disk_with(b"");
    disk.fail_writes(Some(Fault::once(EIO).after(1)));
    file.write_at(b"a", 0).unwrap();
    file.write_at(b"b", 1).unwrap_err();
    file.write_at(b"c", 2).unwrap();
    assert_eq!(disk.contents(FILE), b"a\0c");
    disk.fail_writes(Some(Fault::always(ENOSPC)));
    file.set_size(1).unwrap_err();
    disk.create(&in_log("new")).map(drop).unwrap_err();
    disk.rename(&in_log("file"), &in_log("renamed")).unwrap();
    disk.fail_writes(Some(Fault::always(EROFS)));
    disk.remove(&in_log("renamed")).unwrap_err();
    disk.fail_writes(None);
    disk.remove(&in_log("renamed")).unwrap();
}

#[test]
fn reads_fail_and_space_runs_out() {
    let (disk, file) = disk_with(b"a");
    disk.fail_reads(Some(Fault::once(EIO)));
    file.read_at(&mut [0], 0).unwrap_err();
    assert_eq!(file.read_at(&mut [0], 0).unwrap(), 1);
    assert_eq!(file.read_at(&mut [0], 9).unwrap(), 0);
    disk.set_free_bytes(7);
    assert_eq!(disk.free_bytes(directory()).unwrap(), 7);
}

#[test]
fn nothing_works_when_the_power_is_off() {
    let (disk, file) = disk_with(b"a");
    assert_eq!(disk.crash_points(), 4);
    disk.power_off_after(5);
    file.write_at(b"b", 0).unwrap();
    let errors = [
        file.write_at(b"c", 0).unwrap_err(),
        file.set_size(0).unwrap_err(),
        file.sync().unwrap_err(),
        file.size().unwrap_err(),
        file.read_at(&mut [0], 0).unwrap_err(),
        disk.open(&in_log("file")).map(drop).unwrap_err(),
        disk.create(&in_log("new")).map(drop).unwrap_err(),
        disk.names(directory()).unwrap_err(),
        disk.rename(&in_log("file"), &in_log("new")).unwrap_err(),
        disk.remove(&in_log("file")).unwrap_err(),
        disk.sync_directory(directory()).unwrap_err(),
        disk.free_bytes(directory()).unwrap_err(),
    ];
    assert!(
        errors
            .iter()
            .all(|error| error.to_string() == "power is off")
    );
    assert_eq!(disk.crash_points(), 5);
    assert_eq!(outcomes(&disk), set(["a", "b"].map(Vec::from)));
}

#[test]
fn damage_is_durable() {
    let (disk, file) = disk_with(b"abc");
    file.write_at(b"d", 3).unwrap();
    disk.flip_bit(FILE, 1, 0);
    disk.truncate(FILE, 3);
    assert_eq!(disk.contents(FILE), b"acc");
    assert_eq!(outcomes(&disk), set([b"acc".to_vec()]));
}

/// Does the same at random to this disk and to a real one.
#[test]
fn without_a_cut_it_is_like_a_real_disk() {
    let real_directory = TempDir::new().unwrap();
    let simulated = SimulatedDisk::new(1);
    let mut rng = Rng::with_seed(1);
    for _ in 0..1000 {
        let step = rng.fork();
        let on_simulated = step_at(&simulated, directory(), &mut step.clone());
        let on_real = step_at(&RealDisk, real_directory.path(), &mut step.clone());
        assert_eq!(on_simulated, on_real);
    }
    for path in simulated.paths() {
        let real_path = real_directory.path().join(path.file_name().unwrap());
        assert_eq!(simulated.contents(path), fs::read(real_path).unwrap());
    }
}

/// One operation at random, and all that can be seen of its result.
fn step_at(
    disk: &dyn Disk,
    directory: &Path,
    rng: &mut Rng,
) -> Result<(Vec<u8>, Vec<String>), io::ErrorKind> {
    step(disk, directory, rng).map_err(|error| error.kind())
}

fn step(disk: &dyn Disk, directory: &Path, rng: &mut Rng) -> io::Result<(Vec<u8>, Vec<String>)> {
    let mut path = || directory.join(rng.u8(..4).to_string());
    let (one, other) = (path(), path());
    match rng.u8(..10) {
        0 => drop(disk.create(&one)?),
        1 => disk.rename(&one, &other)?,
        2 => disk.remove(&one)?,
        3 => disk.open(&one)?.set_size(rng.u64(..3000))?,
        4 => disk.sync_directory(directory)?,
        5 => disk.open(&one)?.sync()?,
        _ => {
            let bytes = vec![rng.u8(..); rng.usize(..2000)];
            disk.open(&one)?.write_at(&bytes, rng.u64(..3000))?;
        }
    }
    let mut names = disk.names(directory)?;
    names.sort();
    let file = disk.open(&other)?;
    let mut content = vec![0; file.size()? as usize + 1];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok((content, names))
}

/// After any history, a file whose last operation was a good sync is exactly as it was, whichever way the power went.
#[test]
fn a_good_sync_makes_everything_certain() {
    for seed in 0..SEEDS {
        let mut rng = Rng::with_seed(seed);
        let (disk, file) = disk_with(&[1; 700]);
        for _ in 0..rng.u8(1..20) {
            match rng.u8(..5) {
                0 => file.set_size(rng.u64(..4000)).unwrap(),
                1 => file.sync().unwrap(),
                _ => {
                    let bytes = vec![rng.u8(..); rng.usize(..2000)];
                    file.write_at(&bytes, rng.u64(..3000)).unwrap();
                }
            }
            disk.cut(&mut rng);
        }
        file.sync().unwrap();
        assert_eq!(disk.cut(&mut rng).contents(FILE), disk.contents(FILE));
    }
}
