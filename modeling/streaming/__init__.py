"""Growing while serving: stages that load in the background, and blocks that are warm before they answer."""
