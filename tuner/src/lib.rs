//! The search: parameter spaces, samplers, early stopping and the study that joins them
