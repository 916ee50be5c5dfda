//! The reading of NVML, against a shim of it that plays the machines we do not have.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx_gpu::{Driver, DriverError, Link, inventory, visible_devices};

/// The shim compiled to play `machine`; none, with a word about it, where no C compiler is installed.
fn shim(folder: &Path, machine: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/nvml_shim.c");
    let library = folder.join(format!("libnvml-{}.so", machine.to_lowercase()));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable"]);
    cc.arg(format!("-DSHIM_{machine}")).arg("-o").arg(&library).arg(&source);
    match cc.status() {
        Ok(status) => {
            assert!(status.success(), "cc failed on {}", source.display());
            Some(library)
        }
        Err(error) => {
            println!("skipped: cc cannot be run ({error})");
            None
        }
    }
}

/// Runs `test` with the shim of `machine`.
fn with_shim(machine: &str, test: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if let Some(library) = shim(folder.path(), machine) {
        test(&library);
    }
}

#[test]
fn shim_of_eight_gpus_on_switches() {
    with_shim("HGX", |library| {
        let start = Instant::now();
        let inventory = inventory(Some(library));
        println!("inventory of 8 devices: {:?}", start.elapsed());
        assert_eq!(inventory.note, None);
        assert_eq!(inventory.driver.as_deref(), Some("550.54.15"));
        let indices: Vec<u32> = inventory.devices.iter().map(|device| device.index).collect();
        assert_eq!(indices, [0, 1, 2, 3, 4, 5, 6, 7]);
        let device = &inventory.devices[5];
        assert_eq!(device.uuid, "GPU-00000005-1111-2222-3333-444444444444");
        assert_eq!((device.name.as_str(), device.memory_bytes), ("NVIDIA H100 80GB HBM3", 80 << 30));
        for a in 0..8 {
            for b in 0..8 {
                let wanted = if a == b { Link::Same } else { Link::NvLink(18) };
                assert_eq!(inventory.links.get(a, b), Some(wanted), "GPU {a} to GPU {b}");
            }
        }
        let pair = [inventory.devices[6].clone(), inventory.devices[1].clone()];
        assert_eq!(
            visible_devices(&pair),
            "GPU-00000006-1111-2222-3333-444444444444,GPU-00000001-1111-2222-3333-444444444444"
        );
        let json = serde_json::to_value(&inventory).expect("json");
        assert_eq!(json["links"][0][1], "NV18");
    });
}

#[test]
fn shim_of_a_cube_mesh() {
    with_shim("CUBE", |library| {
        let links = inventory(Some(library)).links;
        // Two GPUs that are both wired to a third are not linked by it.
        let row: Vec<String> = (0..8).map(|b| links.get(0, b).expect("a link").to_string()).collect();
        assert_eq!(row, ["X", "NV1", "NV1", "NV2", "NV2", "SYS", "SYS", "SYS"]);
    });
}

#[test]
fn shim_of_every_pcie_distance() {
    with_shim("PCIE", |library| {
        let links = inventory(Some(library)).links;
        assert_eq!(links.get(0, 1), Some(Link::Pix));
        assert_eq!(links.get(0, 2), Some(Link::Pxb));
        assert_eq!(links.get(0, 3), Some(Link::Phb));
        assert_eq!(links.get(1, 2), Some(Link::Node));
        assert_eq!(links.get(3, 2), Some(Link::Sys));
        assert_eq!(links.to_string().lines().count(), 5);
    });
}

#[test]
fn shim_of_mig_instances() {
    with_shim("MIG", |library| {
        let driver = Driver::open(Some(library)).expect("a driver");
        let inventory = driver.inventory().expect("an inventory");
        let uuids: Vec<&str> = inventory.devices.iter().map(|device| device.uuid.as_str()).collect();
        assert_eq!(
            uuids,
            [
                "MIG-00000000-1111-2222-3333-000000000000",
                "MIG-00000000-1111-2222-3333-000000000001",
                "GPU-00000001-1111-2222-3333-444444444444"
            ]
        );
        assert_eq!(inventory.devices[1].memory_bytes, 40 << 30);
        assert_eq!(inventory.devices[1].name, "NVIDIA H100 80GB HBM3 MIG 3g.40gb");
        // NVLink is not offered to MIG instances.
        assert_eq!(inventory.links.get(0, 1), Some(Link::Pix));
        assert_eq!(inventory.links.get(1, 2), Some(Link::Pix));
        let usage = driver.usage(1).expect("its use");
        assert_eq!((usage.memory_used_bytes, usage.utilization_percent), (Some(1 << 30), None));
    });
    with_shim("MIG_EMPTY", |library| {
        let inventory = inventory(Some(library));
        assert_eq!(inventory.devices.len(), 1);
        let note = inventory.note.expect("a note");
        assert!(note.contains("GPU 0 is in MIG mode without an instance"), "{note}");
    });
}

#[test]
fn shim_of_live_use() {
    with_shim("HGX", |library| {
        let driver = Driver::open(Some(library)).expect("a driver");
        let usage = driver.usage(4).expect("its use");
        assert_eq!((usage.memory_used_bytes, usage.utilization_percent), (Some(5 << 30), Some(47)));
        assert_eq!(driver.usage(8), Err(DriverError::NoDevice { index: 8 }));
    });
}

#[test]
fn shim_of_a_lost_gpu_leaves_the_others() {
    with_shim("LOST", |library| {
        let inventory = inventory(Some(library));
        assert_eq!(inventory.devices.len(), 7);
        let note = inventory.note.expect("a note");
        assert!(note.starts_with("GPU 3 is left out: "), "{note}");
    });
}

#[test]
fn shim_of_an_old_driver() {
    with_shim("OLD", |library| {
        let driver = Driver::open(Some(library)).expect("a driver");
        let inventory = driver.inventory().expect("an inventory");
        assert_eq!((inventory.devices.len(), inventory.note), (8, None));
        assert_eq!(inventory.devices[0].memory_bytes, 0, "unknown, as the function came later");
        assert_eq!(driver.usage(0).expect("its use").utilization_percent, Some(7));
    });
}

#[test]
fn shim_of_broken_drivers() {
    for (machine, wanted) in [
        ("MISMATCH", "differ in version"),
        ("NOT_LOADED", "kernel module is not loaded"),
        ("STRANGE", "unexpected enum variant value: 4711"),
        ("NONE", "the NVIDIA driver has no GPU"),
    ] {
        with_shim(machine, |library| {
            let inventory = inventory(Some(library));
            assert!(inventory.devices.is_empty() && inventory.links.is_empty());
            let note = inventory.note.expect("a note");
            assert!(note.contains(wanted), "{machine}: {note}");
        });
    }
}

#[test]
fn shim_that_never_answers_is_given_up() {
    let bound = Duration::from_millis(100);
    with_shim("HANG", |library| {
        let start = Instant::now();
        assert_eq!(
            Driver::open_within(Some(library), bound).err(),
            Some(DriverError::Silent { waited: bound })
        );
        assert!(start.elapsed() < Duration::from_secs(5));
    });
    with_shim("HANG_LATER", |library| {
        let driver = Driver::open_within(Some(library), bound).expect("a driver");
        assert_eq!(driver.inventory().expect("an inventory").devices.len(), 8);
        for _ in 0..4 {
            assert_eq!(driver.usage(0), Err(DriverError::Silent { waited: bound }));
        }
    });
}

#[test]
fn shim_that_is_no_library_at_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let broken = folder.path().join("libnvml-broken.so");
    std::fs::write(&broken, b"not a library").expect("a file");
    for library in [broken, folder.path().join("absent.so"), PathBuf::from("libc.so.6")] {
        let inventory = inventory(Some(&library));
        assert!(inventory.devices.is_empty());
        assert!(inventory.note.is_some_and(|note| note.len() > 20), "{}", library.display());
    }
}

#[test]
fn this_machine_answers_without_an_error() {
    let inventory = inventory(None);
    println!("devices {}, note {:?}", inventory.devices.len(), inventory.note);
    assert!(!inventory.devices.is_empty() || inventory.note.is_some());
    assert_eq!(phalanx_gpu::usage(0).is_some(), !inventory.devices.is_empty());
    println!("nccl {:?}\ncuda {:?}", phalanx_gpu::nccl(), phalanx_gpu::cuda_driver());
}
