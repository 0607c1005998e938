//! What the README says of the tests is true.

use std::fs;

/// Every test that the README names as the holder of a promise is there: as a module, or as a part of a test's name.
#[test]
fn every_promise_is_held_by_a_test() {
    let readme = fs::read_to_string("README.md").unwrap();
    let (_, promises) = readme.split_once("| promise | held by |").unwrap();
    let rows = promises
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut names = 0;
    let sources: Vec<(String, String)> = fs::read_dir("tests/it")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            let module = path.file_stem().unwrap().to_string_lossy().into_owned();
            (module, fs::read_to_string(path).unwrap())
        })
        .collect();
    for row in rows {
        let holders = row.trim_end_matches('|').rsplit('|').next().unwrap();
        for name in holders.split('`').skip(1).step_by(2) {
            let module = name.trim_end_matches("::");
            let is_module = fs::exists(format!("tests/it/{module}")).unwrap()
                || sources.iter().any(|(source, _)| source == module);
            let is_test = sources.iter().any(|(_, text)| {
                let mut names = text.lines().filter_map(|line| line.split_once("fn "));
                names.any(|(_, signature)| signature.contains(name))
            });
            assert!(
                is_module || is_test,
                "the README names {name}, and there is no such test"
            );
            names += 1;
        }
    }
    assert!(names > 20, "the table of promises was not found");
}
