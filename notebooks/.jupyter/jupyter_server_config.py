"""Settings of `make lab`: notebooks run in the root of the repository, as with `make`, so that the same paths work."""

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager


class RootKernelManager(AsyncMappingKernelManager):
    """Start every kernel in the folder where the server was started, not in the folder of the notebook."""

    def cwd_for_path(self, path: str, **kwargs: object) -> str:
        """Return the working directory of a kernel, the same for every notebook."""
        return self.root_dir


c.ServerApp.kernel_manager_class = RootKernelManager  # noqa: F821  (Jupyter defines c)
