//! The cache before engines that do as they are told, in paused time.
