.PHONY: install rollback uninstall

install: ## programs to /opt/binance-funding, units to /etc/systemd/system, settings to /etc/binance-funding.env
	@sh packaging/install.sh install

rollback: ## the installed release before this one again, the service restarted
	@sh packaging/install.sh rollback

uninstall: ## all of that away again, but for the settings
	@sh packaging/install.sh uninstall
