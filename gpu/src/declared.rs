//! Devices by declaration, and how ranks are told which are theirs.

use phalanx_core::Device;

/// `count` devices that a person declared (`up --gpus N`), for machines and tests without a driver. Each is named by its
/// index, which is also how CUDA would take it.
pub fn declared(count: u32) -> Vec<Device> {
    (0..count)
        .map(|index| Device {
            index,
            uuid: index.to_string(),
            name: "declared GPU".to_owned(),
            memory_bytes: 0,
        })
        .collect()
}

/// The value of `CUDA_VISIBLE_DEVICES` that shows a process exactly `devices`, in this order. Empty for none: an unset
/// variable would show it all of them.
pub fn visible_devices(devices: &[Device]) -> String {
    let names: Vec<&str> = devices.iter().map(|device| device.uuid.as_str()).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_devices_are_named_by_index() {
        let devices = declared(3);
        assert_eq!(devices.iter().map(|device| device.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(visible_devices(&devices[1..]), "1,2");
        assert_eq!(visible_devices(&[]), "");
    }
}
