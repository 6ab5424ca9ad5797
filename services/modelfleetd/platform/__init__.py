"""The launcher's and capacity's side of platform agents: the contract, its rules, a client and a simulator."""
