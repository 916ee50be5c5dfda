//! The wire: protobuf messages, generated code and conversions to the model
