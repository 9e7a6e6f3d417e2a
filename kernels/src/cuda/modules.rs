//! Our kernels as the build compiled them: cubins, loaded when first launched.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    driver::{CudaContext, CudaFunction, CudaModule, sys},
    nvrtc::Ptx,
};

use super::failed;
use crate::KernelError;
use crate::launch::{Element, Launch};

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

const OP: &str = "load a kernel";

/// Dynamic shared memory that a kernel may have without asking.
const SHARED_FREE: u32 = 48 << 10;

/// The kernels that were launched before.
#[derive(Debug, Default)]
pub(super) struct Modules(Mutex<Loaded>);

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<(&'static str, &'static str, Element), (CudaFunction, u32)>,
}

impl Modules {
    /// Loads every module.
    pub(super) fn load_all(&self, context: &Arc<CudaContext>) -> Result<(), KernelError> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        MODULES.iter().try_for_each(|(name, _)| loaded.module(context, name).map(|_| ()))
    }

    /// The kernel of a launch, allowed the shared memory it asks for.
    pub(super) fn function(&self, context: &Arc<CudaContext>, launch: &Launch) -> Result<CudaFunction, KernelError> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (launch.module, launch.kernel, launch.element);
        if let Some((function, shared)) = loaded.functions.get(&key)
            && launch.shared_bytes <= *shared
        {
            return Ok(function.clone());
        }
        let module = loaded.module(context, launch.module)?;
        let function = module.load_function(&launch.name()).map_err(failed(OP))?;
        if launch.shared_bytes > SHARED_FREE {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, launch.shared_bytes as i32).map_err(failed(OP))?;
        }
        loaded.functions.insert(key, (function.clone(), launch.shared_bytes.max(SHARED_FREE)));
        Ok(function)
    }
}

impl Loaded {
    fn module(&mut self, context: &Arc<CudaContext>, name: &'static str) -> Result<Arc<CudaModule>, KernelError> {
        if let Some(module) = self.modules.get(name) {
            return Ok(module.clone());
        }
        let missing = || KernelError::Device { op: OP, message: format!("no module {name}") };
        let (_, cubin) = MODULES.iter().find(|(module, _)| *module == name).ok_or_else(missing)?;
        let module = context.load_module(Ptx::from_binary(cubin.to_vec())).map_err(failed(OP))?;
        self.modules.insert(name, module.clone());
        Ok(module)
    }
}
