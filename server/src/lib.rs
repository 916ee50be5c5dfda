//! The faces of the service: gRPC and HTTP
