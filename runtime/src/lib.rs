//! The task core: controller, store, agent, supervisor
