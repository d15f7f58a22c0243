.PHONY: install rollback uninstall

install: ## programs to /opt/binance-funding, units to /etc/systemd/system, settings to /etc/binance-funding.env
	@sh packaging/install.sh install

rollback: ## return to the previous installed release and restart the service
	@sh packaging/install.sh rollback

uninstall: ## remove all of that, except the settings
	@sh packaging/install.sh uninstall
