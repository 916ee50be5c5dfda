//! The devices: inventory through NVML loaded at run time, topology, declared devices
