//! Services, their endpoints, and what was chosen of these.

use kumiko_abi::{Backend, BackendKey, FlowKey, ServiceEntry, ServiceKey};

use super::{BpfError, Maps, Put};

impl Maps {
    /// Writes a Service's port.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `E2BIG` when the map is full.
    pub fn set_service(&self, key: &ServiceKey, entry: &ServiceEntry) -> Result<(), BpfError> {
        self.0.services.put(key, entry, Put::Any)
    }

    /// Forgets a Service's port; false when it was unknown.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_service(&self, key: &ServiceKey) -> Result<bool, BpfError> {
        self.0.services.remove(key)
    }

    /// Every Service's port.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn services(&self) -> Result<Vec<(ServiceKey, ServiceEntry)>, BpfError> {
        self.0.services.list()
    }

    /// Writes an endpoint of a Service.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `E2BIG` when the map is full.
    pub fn set_backend(&self, key: &BackendKey, backend: &Backend) -> Result<(), BpfError> {
        self.0.backends.put(key, backend, Put::Any)
    }

    /// Forgets an endpoint of a Service; false when it was unknown.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_backend(&self, key: &BackendKey) -> Result<bool, BpfError> {
        self.0.backends.remove(key)
    }

    /// Every endpoint of a Service.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn backends(&self) -> Result<Vec<(BackendKey, Backend)>, BpfError> {
        self.0.backends.list()
    }

    /// What was chosen for exchanges with Services, and which Services these asked.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn translations(&self) -> Result<Vec<(FlowKey, Backend)>, BpfError> {
        self.0.translations.list()
    }

    /// What is kept under a flow's key: the Service that its client asked.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn translation(&self, key: &FlowKey) -> Result<Option<Backend>, BpfError> {
        self.0.translations.get(key)
    }

    /// Forgets a choice: the exchange's next datagram has another one made. False when it was unknown.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_translation(&self, key: &FlowKey) -> Result<bool, BpfError> {
        self.0.translations.remove(key)
    }
}
