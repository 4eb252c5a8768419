"""Settings of `make lab`: notebooks run in the root of the repository, as with `make`, so that paths mean the same."""

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager


class RootKernelManager(AsyncMappingKernelManager):
    """Starts every kernel in the folder that the server was started in, not beside the notebook."""

    def cwd_for_path(self, path: str, **kwargs: object) -> str:
        """Give the working directory of a kernel, whichever notebook it is for."""
        return self.root_dir


c.ServerApp.kernel_manager_class = RootKernelManager  # noqa: F821  (Jupyter defines c)
